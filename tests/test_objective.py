"""The engine against `oracle`: losses, gradients and kept tokens of an optimizer step.

Both run in float64 but where a test says otherwise, so 1e-10 is nothing but rounding.
"""

from functools import cache

import engine
import oracle
import pytest
import tiny
import torch
from engine import VOCABULARY, Held, term
from kdcore_ensemble import Ensemble
from kdcore_losses import (
    AdaptiveKL,
    AlphaBeta,
    CrossEntropy,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    SymmetricKL,
    TotalVariation,
)
from kdcore_selections import Entropy, Hardest, Random, Rho
from torch import nn

from kdcore import Loss, PluginError
from kdcore.objective import per_token, values_of
from kdcore.options import Schedule

ROWS = {"packed": engine.packed_rows(), "single": engine.single_rows()}
KINDS = tiny.KINDS
MICRO_BATCHES = (1, 3, 8)
LOSSES = {
    "ce": CrossEntropy(),
    "kl": ForwardKL(temperature=2.0),
    "kl, no T^2": ForwardKL(temperature=2.0, scale_by_t2=False),
    "reverse-kl": ReverseKL(temperature=0.7),
    "skew-kl": SkewKL(skew=0.3),
    "skew-reverse-kl": SkewReverseKL(temperature=2.0),
    "jsd": JensenShannon(beta=0.2),
    "jsd, normalised": JensenShannon(beta=0.9, temperature=3.0, normalise=True),
    "jsd at 1": JensenShannon(beta=1.0),
    "tvd": TotalVariation(temperature=2.0),
    "symmetric-kl": SymmetricKL(forward=0.3),
    "adaptive-kl": AdaptiveKL(temperature=2.0),
    "alpha-beta": AlphaBeta(temperature=2.0),
    "alpha-beta, beta 0": AlphaBeta(alpha=0.5, beta=0.0),
}
SHARE = 0.3
FLOAT32 = {"loss": 1e-6, "gradient": 1e-5}  # what float32 may be off by
MIXED = [  # terms of every kind: a schedule, and all three ways to see a selection
    term(ForwardKL(temperature=2.0), Schedule(start=2.0, end=0.5, until=0.5)),
    term(CrossEntropy(), 0.3, on="all"),
    term(TotalVariation(), Schedule(start=0.0, end=1.0), on="dropped"),
]


@cache
def model(kind="llama", seed=0, double=True, **options):
    return engine.model(kind, seed=seed, double=double, **options)


def teacher_of(kind="llama", **options):
    """A teacher as the engine and as the oracle know it."""
    made = model(kind, seed=1, **options)
    return Held(made), oracle.model_teacher(made, VOCABULARY)


def ensemble(average, weights):
    """Two teachers in one, as the engine and as the oracle know it."""
    members = [model("gpt2", seed=1), model("llama", seed=2)]
    made = Ensemble(members=[Held(m) for m in members], average=average, weights=weights)
    form = oracle.mean_of_logits if average == "logits" else oracle.mixture
    known = [oracle.model_teacher(m, VOCABULARY) for m in members]
    return made, form(known, weights or [1.0, 1.0])


def selections(kind="llama"):
    """Every selection, and the scores that it is to rank by."""
    reference, known = Held(model(kind, seed=2)), oracle.model_teacher(model(kind, 2), VOCABULARY)
    return {
        "rho": (Rho(keep=SHARE, reference=reference), oracle.rho(known)),
        "hardest": (Hardest(keep=SHARE), oracle.hardest),
        "entropy": (Entropy(keep=SHARE), oracle.entropy_of("student")),
        "teacher's entropy": (Entropy(keep=SHARE, of="teacher"), oracle.entropy_of("teacher")),
        "random": (Random(keep=SHARE), oracle.random(seed=0, step=1)),
    }


@cache
def judged(kind, rows, selected=None, **options):
    """The oracle's answer to two terms, and with a selection to three."""
    scores = selections(kind)[selected][1] if selected else None
    return oracle.step(
        model(kind),
        ROWS[rows],
        MIXED if selected else MIXED[:2],
        vocabulary=VOCABULARY,
        teacher=teacher_of(kind)[1],
        scores=scores,
        share=SHARE,
        **options,
    )


def assert_equal(found, expected, *, loss=1e-10, gradient=1e-10, selected=False):
    assert found.valid == expected.tokens
    if selected:
        assert found.kept == expected.kept
    assert found.terms.keys() <= expected.terms.keys()
    for label, exact in expected.terms.items():
        assert found.terms.get(label, 0.0) == pytest.approx(exact, rel=loss, abs=loss), label
    for name, gradients in found.gradients.items():
        exact = expected.gradients.get(name)
        assert (gradients is None) == (exact is None), name
        if exact is not None:
            close = {"rtol": gradient, "atol": gradient}
            torch.testing.assert_close(gradients.double(), exact, **close)


# Losses, terms, teachers


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


# Selections


@pytest.mark.parametrize("micro_batch", MICRO_BATCHES)
@pytest.mark.parametrize("name", selections())
def test_selections(name, micro_batch):
    found = engine.step(
        model(),
        ROWS["packed"],
        MIXED,
        teacher=teacher_of()[0],
        selection=selections()[name][0],
        micro_batch=micro_batch,
    )
    assert_equal(found, judged("llama", "packed", name), selected=True)


@pytest.mark.parametrize("name", ["rho", "random"])
@pytest.mark.parametrize("micro_batch", MICRO_BATCHES)
def test_selections_within_micro_batches(name, micro_batch):
    """Each micro-batch ranks its own tokens, and counts as its share of the step's."""
    selection, scores = selections()[name]
    groups = [list(range(8))[at : at + micro_batch] for at in range(0, 8, micro_batch)]
    teacher, known = teacher_of()
    options = {"scope": "micro_batch", "micro_batch": micro_batch}
    found = engine.step(
        model(), ROWS["packed"], MIXED, teacher=teacher, selection=selection, **options
    )
    expected = oracle.step(
        model(),
        ROWS["packed"],
        MIXED,
        vocabulary=VOCABULARY,
        teacher=known,
        scores=scores,
        share=SHARE,
        groups=groups,
    )
    assert_equal(found, expected, selected=True)


@pytest.mark.parametrize("micro_batch", MICRO_BATCHES)
def test_keeping_everything_is_plain_cross_entropy_bit_for_bit(micro_batch):
    student, options = model(double=False), {"micro_batch": micro_batch}
    everything = Hardest(keep=1.0)
    plain = engine.step(student, ROWS["packed"], [term()], **options)
    kept = engine.step(student, ROWS["packed"], [term()], selection=everything, **options)
    assert kept.terms == plain.terms
    for name, gradient in plain.gradients.items():
        assert torch.equal(kept.gradients[name], gradient)


@pytest.mark.parametrize(
    "keep",
    [
        lambda tokens: tokens.nll() > 3,
        lambda tokens: tokens.score(ForwardKL()) > 1,
        lambda tokens: tokens.score(ForwardKL()) > tokens.nll(),
    ],
)
def test_a_teacher_is_read_once_whoever_asks(keep):
    selection = engine.Keeps(keep)
    for micro_batch, reads in ((8, 1), (3, 3)):
        teacher = teacher_of()[0]
        options = {"teacher": teacher, "selection": selection, "micro_batch": micro_batch}
        engine.step(model(), ROWS["packed"], [term(ForwardKL())], **options)
        assert teacher.reads == reads


# Precision


@pytest.mark.parametrize("kind", KINDS)
def test_float32(kind, micro_batch=3):
    found = engine.step(
        model(kind, double=False),
        ROWS["packed"],
        MIXED,
        teacher=teacher_of(kind, double=False)[0],
        selection=Hardest(keep=SHARE),
        micro_batch=micro_batch,
    )
    assert_equal(found, judged(kind, "packed", "hardest"), selected=True, **FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_float32_of_every_loss(kind, name):
    teacher, (_, known) = teacher_of(kind, double=False)[0], teacher_of(kind)
    terms = [term(LOSSES[name])]
    expected = oracle.step(model(kind), ROWS["packed"], terms, vocabulary=VOCABULARY, teacher=known)
    for micro_batch in MICRO_BATCHES:
        found = engine.step(
            model(kind, double=False),
            ROWS["packed"],
            terms,
            teacher=teacher,
            micro_batch=micro_batch,
        )
        assert_equal(found, expected, **FLOAT32)


def test_bf16_autocast_is_roughly_equal():
    student, teacher = model(double=False), teacher_of(double=False)[0]
    made = engine.trainer(student, ROWS["packed"], MIXED[:2], teacher=teacher, micro_batch=3)
    made.run.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    made.run.language_model = engine.LanguageModel(student)
    made.run.language_model.precision = torch.bfloat16
    made.step(1)
    record = made.recorder.record(0.1)
    expected = judged("llama", "packed")
    assert record.terms == pytest.approx(expected.terms, rel=0.02)
    for found, exact in zip(made.optimizer.seen, expected.gradients.values(), strict=True):
        assert found.dtype == torch.float32
        assert float((found - exact).norm() / exact.norm()) < 0.1


# Heads


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("widths", [(41, 45), (45, 41)])
def test_vocabularies_are_cut_to_the_shared_ids(widths, tied):
    """Rows beyond the shared ids get no gradient, whoever has more of them."""
    student = model(vocabulary=widths[0], tie_word_embeddings=tied)
    other = model(seed=1, vocabulary=widths[1])
    terms = [term(ForwardKL()), term()]
    options = {"vocabulary": VOCABULARY, "teacher": Held(other)}
    found = engine.step(student, ROWS["packed"], terms, **options)
    options["teacher"] = oracle.model_teacher(other, VOCABULARY)
    assert_equal(found, oracle.step(student, ROWS["packed"], terms, **options))
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    assert found.gradients[head].shape[0] == widths[0]
    assert not found.gradients[head][VOCABULARY:].any()


def head_with_bias():
    made = engine.model(double=True)
    made.lm_head = nn.Linear(16, VOCABULARY, dtype=torch.float64)
    return made


def soft_capped():
    """Its logits are more than trunk and head, so the engine works on the full logits."""
    return engine.model("gemma2", double=True, final_logit_softcapping=3.0, query_pre_attn_scalar=8)


def partly_frozen():
    made = engine.model(double=True)
    made.lm_head.requires_grad_(False)
    return made


@pytest.mark.parametrize("make", [head_with_bias, soft_capped, partly_frozen])
def test_heads(make):
    student, (teacher, known) = make(), teacher_of()
    assert (engine.proved(student).weight is None) == (make is soft_capped)
    terms = [term(ForwardKL(temperature=2.0)), term()]
    found = engine.step(student, ROWS["packed"], terms, teacher=teacher, micro_batch=3)
    expected = oracle.step(student, ROWS["packed"], terms, vocabulary=VOCABULARY, teacher=known)
    # Gemma's norms round to float32.
    assert_equal(found, expected, **(FLOAT32 if make is soft_capped else {}))


# Steps in which there is nothing to learn


@pytest.mark.parametrize("select", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_without_tokens_gives_zero(kind, select):
    rows = [engine.row(6, seed=1, prompt=6), engine.row(1, seed=2), engine.row(4, seed=3, prompt=9)]
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
def test_every_denominator_is_known_before_the_first_backward(select):
    events = []

    class Accelerator(engine.Alone):
        def reduce(self, tensor, how):
            events.append("count")
            return tensor

        def backward(self, loss):
            events.append("backward")

    made = engine.trainer(
        model(),
        ROWS["packed"],
        MIXED if select else MIXED[:2],
        teacher=teacher_of()[0],
        selection=Hardest(keep=SHARE) if select else None,
        micro_batch=3,
        accelerator=Accelerator(),
    )
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
        per_token(Broken(values), student, None, torch.zeros(4, dtype=torch.long))
    assert said in str(caught.value)
    assert "'broken'" in str(caught.value)


@pytest.mark.parametrize(
    "held", [nn.Linear(2, 2), nn.Parameter(torch.ones(1)), torch.ones(1, requires_grad=True)]
)
def test_a_loss_that_wants_to_learn_is_refused(held):
    with pytest.raises(PluginError, match="'broken' has something to learn in 'values'"):
        values_of([Broken(held)])
    values_of([Broken(held.requires_grad_(False))])


@pytest.mark.parametrize("keep", [torch.ones(3), torch.ones(2, dtype=torch.bool), [True] * 3])
def test_a_selection_that_breaks_its_contract_is_named(keep):
    selection = engine.Keeps(lambda tokens: keep)
    with pytest.raises(PluginError, match=r"selection 'keeps' .*returned"):
        made = engine.trainer(model(), [engine.row(4)], [term()], batch=1, selection=selection)
        made.step(1)
