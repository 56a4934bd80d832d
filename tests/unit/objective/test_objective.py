"""The engine against `oracle`: losses and gradients of an optimizer step.

Both run in float64 but where a test says otherwise, so 1e-10 is nothing but rounding.
"""

import engine
import given
import oracle
import pytest
import torch
from cases import (
    KINDS,
    LOSSES,
    MICRO_BATCHES,
    MIXED,
    ROWS,
    SHARE,
    assert_equal,
    ensemble,
    judged,
    model,
    selections,
    teacher_of,
)
from engine import term
from given import VOCABULARY
from kdcore_losses import ForwardKL
from kdcore_selections import Hardest
from torch import nn

from kdcore import Loss, PluginError
from kdcore.objective.losses import checked_values, values_of


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    teacher, known = teacher_of()
    terms = [term(LOSSES[name])]
    found = engine.step(model(), ROWS["packed"], terms, teacher=teacher, micro_batch=3)
    expected = oracle.step(model(), ROWS["packed"], terms, vocabulary=VOCABULARY, teacher=known)
    assert_equal(found, expected)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", KINDS)
def test_architectures_and_micro_batches(kind, rows):
    for micro_batch in MICRO_BATCHES:
        found = engine.step(
            model(kind),
            ROWS[rows],
            MIXED[:2],
            teacher=teacher_of(kind)[0],
            micro_batch=micro_batch,
        )
        assert_equal(found, judged(kind, rows))


@pytest.mark.parametrize("step", [1, 4, 6, 10])
def test_schedules(step):
    """Weights go by the share of the run that is done; those that are zero are not computed."""
    done = (step - 1) / 10
    found = engine.step(
        model(),
        ROWS["packed"],
        MIXED,
        teacher=teacher_of()[0],
        selection=selections()["hardest"][0],
        micro_batch=3,
        steps=10,
        at=step,
    )
    assert_equal(found, judged("llama", "packed", "hardest", done=done), selected=True)
    assert found.terms.keys() == {t.label for t in MIXED if oracle.weight_at(t.weight, done)}


@pytest.mark.parametrize("average", ["logits", "probs"])
@pytest.mark.parametrize("weights", [None, [0.5, 1.5]])
def test_ensembles(average, weights):
    teacher, known = ensemble(average, weights)
    terms = [term(ForwardKL(temperature=2.0)), term(weight=0.5)]
    found = engine.step(model(), ROWS["packed"], terms, teacher=teacher, micro_batch=3)
    expected = oracle.step(model(), ROWS["packed"], terms, vocabulary=VOCABULARY, teacher=known)
    assert_equal(found, expected)


# Steps in which there is nothing to learn


@pytest.mark.parametrize("select", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_without_tokens_gives_zero(kind, select):
    rows = [given.row(6, seed=1, prompt=6), given.row(1, seed=2), given.row(4, seed=3, prompt=9)]
    terms = MIXED if select else MIXED[:2]
    selection = Hardest(keep=SHARE) if select else None
    for micro_batch in (1, 3):
        found = engine.step(
            model(kind),
            rows,
            terms,
            teacher=teacher_of(kind)[0],
            selection=selection,
            micro_batch=micro_batch,
        )
        assert set(found.terms.values()) == {0.0}
        assert all(not gradient.any() for gradient in found.gradients.values())


# Denominators


@pytest.mark.parametrize("select", [False, True])
def test_every_denominator_is_known_before_the_first_backward(monkeypatch, select):
    events = []

    def total(value):
        events.append("count")
        return value

    made = engine.trainer(
        model(),
        ROWS["packed"],
        MIXED if select else MIXED[:2],
        teacher=teacher_of()[0],
        selection=Hardest(keep=SHARE) if select else None,
        micro_batch=3,
    )
    made.total = total
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: events.append("backward"))
    made.step(1)
    assert events == ["count"] * (2 if select else 1) + ["backward"] * 3


# Plugins that break their contract


class Broken(Loss):
    name = "broken"
    needs_teacher = False

    def __init__(self, values):
        self.values = values

    def per_token(self, student, teacher, labels):
        return self.values(student, labels)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (lambda student, labels: student.sum(), "returned () from per_token"),
        (lambda student, labels: 1.0, "returned float from per_token"),
        (lambda student, labels: student.detach().sum(-1), "without a gradient"),
    ],
)
def test_a_loss_that_breaks_its_contract_is_named(values, said):
    student = torch.zeros(4, 7, requires_grad=True)
    with pytest.raises(PluginError) as caught:
        checked_values(Broken(values), student, None, torch.zeros(4, dtype=torch.long))
    assert said in str(caught.value)
    assert "'broken'" in str(caught.value)


@pytest.mark.parametrize(
    "held", [nn.Linear(2, 2), nn.Parameter(torch.ones(1)), torch.ones(1, requires_grad=True)]
)
def test_a_loss_that_wants_to_learn_is_refused(held):
    with pytest.raises(PluginError, match="'broken' has trainable parameters in 'values'"):
        values_of([Broken(held)])
    values_of([Broken(held.requires_grad_(False))])


@pytest.mark.parametrize(
    "keep", [torch.ones(3).long(), torch.ones(2, dtype=torch.bool), [True] * 3]
)
def test_a_selection_that_breaks_its_contract_is_named(keep):
    selection = engine.Keeps(lambda tokens: keep)
    with pytest.raises(PluginError, match=r"selection 'keeps' .*returned"):
        made = engine.trainer(model(), [given.row(4)], [term()], batch=1, selection=selection)
        made.step(1)
