"""The engine against `oracle`: heads of every kind, and precisions.

Both run in float64 but where a test says otherwise, so 1e-10 is nothing but rounding.
"""

import engine
import given
import oracle
import pytest
import torch
from cases import (
    FLOAT32,
    KINDS,
    LOSSES,
    MICRO_BATCHES,
    MIXED,
    ROWS,
    SHARE,
    assert_equal,
    judged,
    model,
    teacher_of,
)
from engine import Held, term
from given import VOCABULARY
from kdcore_losses import ForwardKL
from kdcore_selections import Hardest
from torch import nn

from kdcore import LanguageModel

pytestmark = pytest.mark.slow


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
    made = given.model(double=True)
    made.lm_head = nn.Linear(16, VOCABULARY, dtype=torch.float64)
    return made


def soft_capped():
    """Its logits are a function of those of its head."""
    return given.model("gemma2", double=True, final_logit_softcapping=3.0, query_pre_attn_scalar=8)


def partly_frozen():
    made = given.model(double=True)
    made.lm_head.requires_grad_(False)
    return made


@pytest.mark.parametrize("make", [head_with_bias, soft_capped, partly_frozen])
def test_heads(make):
    student, (teacher, known) = make(), teacher_of()
    assert (given.proved(student).bend is None) == (make is not soft_capped)
    terms = [term(ForwardKL(temperature=2.0)), term()]
    found = engine.step(student, ROWS["packed"], terms, teacher=teacher, micro_batch=3)
    expected = oracle.step(student, ROWS["packed"], terms, vocabulary=VOCABULARY, teacher=known)
    # Gemma's norms round to float32.
    assert_equal(found, expected, **(FLOAT32 if make is soft_capped else {}))


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
    made.run.language_model = LanguageModel(student)
    made.run.language_model.precision = torch.bfloat16
    made.step(1)
    record = made.recorder.record(0.1)
    expected = judged("llama", "packed")
    weighted = {label: record.weights[label] * term for label, term in record.terms.items()}
    assert weighted == pytest.approx(expected.terms, rel=0.02)
    for found, exact in zip(made.optimizer.seen, expected.gradients.values(), strict=True):
        assert found.dtype == torch.float32
        assert float((found - exact).norm() / exact.norm()) < 0.1
