"""`average = "losses"`: each loss is the average of its values over the members."""

from types import SimpleNamespace

import engine
import given
import oracle
import pytest
import torch
from cases import assert_equal, model
from engine import Held, term
from given import VOCABULARY
from kdcore_cached import CachedTeacher
from kdcore_ensemble import Ensemble
from kdcore_losses import CrossEntropy, ForwardKL, ReverseKL
from kdcore_routed import Routed

from kdcore import read
from kdcore.objective.compiled_losses import compiled_values_of
from kdcore.objective.losses import values_of
from kdcore.testing.fakes import TableTeacher, make_batch

ROWS = given.rows_with_columns()
WEIGHTS = [0.5, 1.5]
TERMS = [term(ReverseKL(temperature=2.0)), term(CrossEntropy(), 0.3)]


def members():
    return [model("gpt2", seed=1), model("llama", seed=2)]


def ensemble(**options):
    return Ensemble(members=[Held(one) for one in members()], average="losses", **options)


def expected(terms=TERMS, weights=WEIGHTS):
    """The average of what each member is worth by itself."""
    shares = [weight / sum(weights) for weight in weights]
    each = [
        oracle.step(
            model(),
            ROWS,
            terms,
            vocabulary=VOCABULARY,
            teacher=oracle.model_teacher(one, VOCABULARY),
        )
        for one in members()
    ]

    def mean(values):
        return sum(share * value for share, value in zip(shares, values, strict=True))

    first = each[0]
    return oracle.Answer(
        {label: mean([one.terms[label] for one in each]) for label in first.terms},
        {name: mean([one.gradients[name] for one in each]) for name in first.gradients},
        first.kept,
        first.tokens,
    )


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_a_loss_is_its_average_over_the_members(micro_batch):
    found = engine.step(
        model(), ROWS, TERMS, teacher=ensemble(weights=WEIGHTS), micro_batch=micro_batch
    )
    assert_equal(found, expected())


def test_that_is_another_objective_than_the_mixture():
    mixture = Ensemble(members=[Held(one) for one in members()], average="probs")
    found = engine.step(model(), ROWS, TERMS, teacher=ensemble())
    other = engine.step(model(), ROWS, TERMS, teacher=mixture)
    assert found.terms["reverse-kl"] != pytest.approx(other.terms["reverse-kl"], rel=1e-3)
    assert found.terms["ce"] == other.terms["ce"]


def test_scores_of_a_selection_are_averages_too():
    seen = []
    loss = ReverseKL()
    look = engine.Keeps(lambda tokens: seen.append(tokens.score(loss)) or tokens.labels >= 0)
    for teacher in (ensemble(), *map(Held, members())):
        engine.step(model(), ROWS, [term(loss)], teacher=teacher, selection=look)
    both, one, other = seen
    torch.testing.assert_close(both, (one + other) / 2)


def test_whoever_else_asks_sees_the_mixture():
    batch = make_batch([[3, 1, 4, 1, 5]])
    each = [TableTeacher(seed=1), TableTeacher(seed=2)]
    found, mixture = (
        read(Ensemble(members=each, average=average), batch)(batch.valid)
        for average in ("losses", "probs")
    )
    assert torch.equal(found, mixture)


@pytest.mark.slow
def test_compiled_it_is_the_same():
    from kdcore.data.batch import Parts

    generator = torch.Generator().manual_seed(0)
    student, *each = (torch.randn(5, 9, generator=generator) for _ in range(3))
    labels, weights = torch.arange(5), torch.rand(2, 5, generator=generator)
    losses = [ForwardKL(), CrossEntropy()]
    parts = Parts((0.25, 0.75), tuple(each))
    plain = values_of(losses)(student.clone(), parts, labels, weights)
    fast = compiled_values_of(losses, 8)(student.clone(), parts, labels, weights)
    for one, other in zip(plain, fast, strict=True):
        torch.testing.assert_close(one, other)


def test_it_cannot_be_averaged_routed_or_stored():
    each = [TableTeacher(), TableTeacher()]
    inner = Ensemble(members=each, average="losses")
    data = SimpleNamespace(name="d", fresh_each_epoch=False, streams=False)
    recipe = SimpleNamespace(data=data, rollout=None)
    (said,) = Ensemble(members=[inner]).faults(recipe)
    assert said.startswith("the member 'ensemble' averages losses")
    (said,) = Routed(members=[inner]).faults(recipe)
    assert "a route needs its logits" in said
    (said,) = CachedTeacher(teacher=inner, kind="topk", k=4).faults(recipe)
    assert "averages losses over its members" in said
    assert not list(Ensemble(members=each, average="losses").faults(recipe))
