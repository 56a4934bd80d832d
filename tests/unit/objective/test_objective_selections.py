"""The engine against `oracle`: kept tokens, and what a step is worth with them.

Both run in float64 but where a test says otherwise, so 1e-10 is nothing but rounding.
"""

import engine
import oracle
import pytest
import torch
from cases import (
    MICRO_BATCHES,
    MIXED,
    ROWS,
    SHARE,
    assert_equal,
    judged,
    model,
    selections,
    teacher_of,
)
from engine import term
from given import VOCABULARY
from kdcore_losses import ForwardKL
from kdcore_selections import Hardest

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize("micro_batch", MICRO_BATCHES)
@pytest.mark.parametrize("on", ["kept", "all", "dropped"])
def test_what_a_term_sees(on, micro_batch):
    selection, scores = selections()["hardest"]
    terms = [term(on=on)]
    found = engine.step(
        model(), ROWS["packed"], terms, selection=selection, micro_batch=micro_batch
    )
    expected = oracle.step(
        model(), ROWS["packed"], terms, vocabulary=VOCABULARY, scores=scores, share=SHARE
    )
    assert_equal(found, expected, selected=True)


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("bad", [0, 2])
def test_tokens_that_no_term_sees_are_left_out_without_a_wait(bad):
    """Where NaN keeps some out, the first one comes again, of no weight."""
    from kdcore.objective.objective import _compact

    keep = torch.tensor([False, True, False, True, True, False], device="cuda")
    keep[3:][:bad] = False
    weights = torch.stack([keep / 4, keep / 2])
    plain, known = (_compact(weights, most) for most in (None, 3))
    kept = 3 - bad
    assert len(plain[0]) == kept and len(known[0]) == 3
    assert known[0].tolist() == plain[0].tolist() + [1] * bad
    assert torch.equal(known[1][:, :kept], plain[1]) and not known[1][:, kept:].any()
