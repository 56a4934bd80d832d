"""What a micro-batch takes: counted on fake tensors, equal to what real ones take."""

from contextlib import nullcontext

import pytest
import tiny
import torch
from kdcore_losses import CrossEntropy, ForwardKL

from kdcore import Loss, component
from kdcore.analysis.memory_trace import Pass, activations, fake_models, footprint
from kdcore.training.setup import enable_checkpointing

pytestmark = pytest.mark.slow

VOCABULARY = 512


def asked(**changes):
    about = dict(
        rows=4, time=32, vocabulary=VOCABULARY, chunk=64, losses=[CrossEntropy()], precision=None
    )
    return Pass(**{**about, **changes})


def found(kind="llama", teachers=0, references=0, fake=True, train=None, **changes):
    with fake_models() if fake else nullcontext():
        student = tiny.model(kind, VOCABULARY, tie_word_embeddings=False, num_key_value_heads=4)
        if train is not None:
            train(student)
        some = [tiny.model(kind, VOCABULARY) for _ in range(teachers + references)]
        result = footprint(student, some[:teachers], some[teachers:], asked(**changes))
    return result, 4 * sum(p.numel() for p in student.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_fake_tensors_take_what_real_ones_do(kind):
    options = dict(teachers=1, losses=[CrossEntropy(), ForwardKL()])
    fake, _ = found(kind, **options)
    real, _ = found(kind, fake=False, **options)
    assert fake.activations == pytest.approx(real.activations, rel=0.1)  # masks differ
    assert fake.chunk == pytest.approx(real.chunk, rel=0.01)
    assert fake.peak == pytest.approx(real.peak, rel=0.05)


def test_experts_take_what_real_ones_do():
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    fake, real = (_of_experts(fake, experts) for fake in (True, False))
    assert fake.activations == pytest.approx(real.activations, rel=0.1)
    assert fake.peak == pytest.approx(real.peak, rel=0.05)


def _of_experts(fake, experts):
    with fake_models() if fake else nullcontext():
        return footprint(tiny.model("qwen3_moe", VOCABULARY, **experts), [], [], asked())


def test_the_gradients_are_part_of_the_peak():
    result, gradients = found(rows=1, time=2)
    assert gradients <= result.peak < 1.5 * gradients


def test_gradients_that_are_there_already_add_to_it():
    first, gradients = found()
    later, _ = found(repeats=True)
    assert first.peak < later.peak <= first.peak + gradients


def test_what_the_trunk_keeps_grows_with_the_tokens():
    one, _ = found(rows=2)
    two, _ = found(rows=4)
    assert two.activations == pytest.approx(2 * one.activations, rel=0.01)


def test_a_chunks_logits_grow_with_the_chunk_and_not_with_the_tokens():
    logits = 4 * 64 * VOCABULARY
    weight = 4 * 32 * VOCABULARY
    small, _ = found(chunk=64, rows=4)
    more, _ = found(chunk=64, rows=8)
    large, _ = found(chunk=128, rows=4)
    assert 3 * logits + weight < small.chunk < 7 * logits + weight
    assert more.chunk - small.chunk < logits
    assert large.chunk - small.chunk > 2 * logits


def test_teachers_and_scores_take_memory_too():
    alone, _ = found(losses=[ForwardKL()])
    taught, _ = found(teachers=2, losses=[ForwardKL()])
    scored, _ = found(references=1, selects=True)
    assert taught.peak > alone.peak
    assert scored.peak > found()[0].peak


def test_checkpointing_keeps_less():
    with fake_models():
        student = tiny.model("llama", VOCABULARY)
        whole = activations(student, asked())
        enable_checkpointing(student)
        assert activations(student, asked()) < whole / 3


def test_half_precision_keeps_less():
    assert found(precision=torch.bfloat16)[0].activations < found()[0].activations


def test_a_frozen_student_has_no_gradients_there():
    result, gradients = found(train=lambda model: model.model.requires_grad_(False))
    assert gradients == 4 * 32 * VOCABULARY  # the head's
    assert result.peak < found()[0].peak


def test_nothing_is_computed():
    seen = []

    @component
    class Watching(Loss):
        name = "watching"
        needs_teacher = False

        def per_token(self, student, teacher, labels):
            seen.append(type(student).__name__)
            return student.mean(-1)

    found(losses=[Watching()])
    assert set(seen) == {"FakeTensor"}
