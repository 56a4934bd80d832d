"""Faults that distillation code is known for, put into the engine one by one: `oracle` sees each.

What the engine does instead has its tests in the files of the parts; here the net is tested.

The four scripts that the founding recipes follow had these faults, and here each is tested:

RHO-1 with Qwen
- labels shifted twice, so the token after the next one is learned:
  test_fault (double_shift)
- padding has a label and wins every ranking:
  test_fault (padding_selectable)
- models compute a loss and whole logits that nobody uses:
  test_no_model_computes_a_loss
- rows of one token, first tokens without a score, empty lines:
  test_one_split_continues_in_the_next_row, test_empty_documents_are_skipped_and_reported,
  test_the_shipped_recipes_run
- documents not packed:
  test_packed_stories_waste_almost_nothing
- the reference's losses one text at a time, kept in memory only, all before the first step:
  test_the_shipped_recipes_run, test_other_batches_of_the_same_rows_need_no_teacher
- the text tokenised again for the reference, with what ids it likes:
  test_conflicts_are_named
- no clipping, schedule or evaluation:
  test_clipping, test_events_come_in_order, test_cosine_decays_over_half_a_wave

White-box distillation with four divergences
- divergence masked by labels that are not shifted:
  test_fault (masked_by_unshifted_labels, no_shift)
- sums of a divergence beside means of cross-entropy:
  test_fault (sums_instead_of_means)
- temperature 2 without its square:
  test_fault (t2_left_out)
- the logarithm of a mixture that underflows:
  test_bug_log_of_a_mixture_underflows
- only one of the heads cut, to the other's width: untrained ids stay:
  test_bug_of_heads
- a "reduction" that leaves padding in:
  test_fault (padding_selectable)
- no header before the answer, prompt and answer encoded apart, answers cut away, rows that train
  nothing:
  test_the_law_sees, test_rows_that_are_cut_still_learn_an_answer,
  test_dialogues_without_an_answer_are_dropped
- every row padded to 512:
  test_padding_is_known_by_its_place_not_by_its_id
- a loss that knows nothing of the window's other micro-batches:
  test_fault (mean_of_each_micro_batch)
- a teacher that is said to be tuned with LoRA and is not:
  test_qwen_kl_sft_with_each_divergence

TinyStories from scratch
- the end of a long story kept, not its beginning: an option:
  test_an_over_long_story_is_its_last_tokens_and_one_eos,
  test_an_over_long_story_may_be_split_and_stories_packed
- pad is <unk>: tokens masked by their id:
  test_fault (masked_by_the_id_of_padding), test_padding_is_known_by_its_place_not_by_its_id
- Kaiming's range for embeddings too, 0.088: an option:
  test_every_matrix_starts_with_the_deviation_of_the_formula
- the training loss reported as the model's:
  test_perplexity
- never evaluated while training:
  test_events_come_in_order, test_tinystories_llama

Baby Llama
- T^2 and the factor of "batchmean" left unsaid:
  test_bug_dropping_t2_weakens_the_gradient,
  test_bug_batchmean_is_not_a_value_for_each_token

All of them
- teachers left in training mode, with dropout:
  test_fault (teacher_with_dropout), test_a_teacher_is_never_in_training_mode
"""

import re
from pathlib import Path
from types import SimpleNamespace

import engine
import given
import numpy as np
import oracle
import pytest
import torch
from cases import SHARE, assert_equal
from engine import Held, term
from given import VOCABULARY
from kdcore_losses import CrossEntropy, ForwardKL
from kdcore_losses.base import ScaledDivergence
from kdcore_selections import Rho

from kdcore.data.collate import NOT_TRAINED, Collate, _Arrays
from kdcore.models import attention
from kdcore.objective import losses, step_tokens, teachers
from kdcore.objective.objective import TokenMask

KL = ForwardKL(temperature=2.0)
DROPOUT = dict.fromkeys(given.NO_DROPOUT, 0.5)
REFERENCE = given.model("gpt2", seed=2, double=True)


def rows():
    """Packed rows in which id 0 ends documents, as eos does, also where it pads."""
    made = given.packed_rows()
    for row in made:
        ends = np.append(row["position"][1:] == 0, True)
        row["input_ids"] = np.where(ends, 0, row["input_ids"])
    return made


def no_shift(monkeypatch):
    monkeypatch.setattr(_Arrays, "shifted_labels", lambda arrays: arrays.labels)


def double_shift(monkeypatch):
    inner = _Arrays.shifted_labels

    def twice(arrays):
        once = inner(arrays)
        return np.pad(once[:, 1:], ((0, 0), (0, 1)), constant_values=NOT_TRAINED)

    monkeypatch.setattr(_Arrays, "shifted_labels", twice)


def masked_by_unshifted_labels(monkeypatch):
    """The first answer token's position is left out."""
    inner = _Arrays.shifted_labels
    monkeypatch.setattr(
        _Arrays,
        "shifted_labels",
        lambda arrays: np.where(arrays.labels == NOT_TRAINED, NOT_TRAINED, inner(arrays)),
    )


def masked_by_the_id_of_padding(monkeypatch):
    """Where pad is eos, the model never learns to stop."""
    inner = _Arrays.shifted_labels

    def without(arrays):
        labels = inner(arrays)
        return np.where(labels == 0, NOT_TRAINED, labels)

    monkeypatch.setattr(_Arrays, "shifted_labels", without)


def predicted_across_documents(monkeypatch):
    def shifted(arrays):
        real = np.where(arrays.document >= 0, arrays.ids, NOT_TRAINED)[:, 1:]
        return np.pad(real, ((0, 0), (0, 1)), constant_values=NOT_TRAINED)

    monkeypatch.setattr(_Arrays, "shifted_labels", shifted)


def seen_across_documents(monkeypatch):
    """Positions that go on let attention cross the borders."""
    inner = Collate.__call__

    def go_on(collate, some):
        batch = inner(collate, some)
        time = batch.input_ids.shape[1]
        batch.position_ids[:] = torch.arange(time)
        return batch

    monkeypatch.setattr(Collate, "__call__", go_on)


def seen_through_a_cache(monkeypatch):
    """With transformers' default, documents see each other where attention goes by positions."""
    monkeypatch.setattr(attention, "arguments", lambda *_, **__: {})
    from transformers.models.llama.modeling_llama import LlamaModel

    inner = LlamaModel.forward

    def cached(model, *arguments, **options):
        return inner(model, *arguments, **(options | {"use_cache": True}))

    monkeypatch.setattr(LlamaModel, "forward", cached)


def padding_selectable(monkeypatch):
    """Padding that has a label wins every ranking, as no reference has a loss there."""

    def shifted(arrays):
        labels = inner(arrays)
        return np.where(arrays.document < 0, 0, labels)

    inner = _Arrays.shifted_labels
    monkeypatch.setattr(_Arrays, "shifted_labels", shifted)


def mean_of_each_micro_batch(monkeypatch):
    """Averaged over micro-batches, short ones weigh too much."""

    def count(seen, on, dtype):
        return torch.tensor(3.0 * max(1, int(seen.keep.sum())))

    monkeypatch.setattr(TokenMask, "count", count)


def mean_over_what_is_not_kept(monkeypatch):
    monkeypatch.setattr(TokenMask, "count", lambda seen, on, dtype: seen.valid.to(dtype))


def sums_instead_of_means(monkeypatch):
    monkeypatch.setattr(TokenMask, "count", lambda seen, on, dtype: torch.tensor(1.0, dtype=dtype))


def ranked_by_micro_batch(monkeypatch):
    inner = engine.trainer

    def trainer(*arguments, **options):
        return inner(*arguments, **(options | {"scope": "micro_batch"}))

    monkeypatch.setattr(engine, "trainer", trainer)


def the_lowest_kept(monkeypatch):
    inner = step_tokens.StepTokens.top
    monkeypatch.setattr(
        step_tokens.StepTokens, "top", lambda some, scores, share: inner(some, -scores, share)
    )


def teacher_with_dropout(monkeypatch):
    monkeypatch.setattr(teachers, "_set_eval_mode", lambda teacher: None)


def temperature_on_one_side(monkeypatch):
    inner = losses.checked_values

    def one_sided(loss, student, teacher, labels, *more):
        return inner(loss, student, teacher if teacher is None else teacher * 2, labels, *more)

    monkeypatch.setattr(losses, "checked_values", one_sided)


def t2_left_out(monkeypatch):
    """The divergence fades beside cross-entropy as the temperature rises."""
    monkeypatch.setattr(ScaledDivergence, "factor", lambda loss, temperature: 1.0)


FAULTS = [
    no_shift,
    double_shift,
    masked_by_unshifted_labels,
    masked_by_the_id_of_padding,
    predicted_across_documents,
    seen_across_documents,
    seen_through_a_cache,
    padding_selectable,
    mean_of_each_micro_batch,
    mean_over_what_is_not_kept,
    sums_instead_of_means,
    ranked_by_micro_batch,
    the_lowest_kept,
    teacher_with_dropout,
    temperature_on_one_side,
    t2_left_out,
]


@pytest.fixture(scope="module")
def case():
    """One step in which every fault shows, and what it is worth."""
    student, other = given.model(double=True), given.model("gpt2", seed=1, **DROPOUT)
    other = given.in_double(other)
    terms = [term(KL), term(CrossEntropy(), 0.5)]
    expected = oracle.step(
        student,
        rows(),
        terms,
        vocabulary=VOCABULARY,
        teacher=oracle.model_teacher(other, VOCABULARY),
        scores=oracle.rho(oracle.model_teacher(REFERENCE, VOCABULARY)),
        share=SHARE,
    )
    return SimpleNamespace(student=student, other=other, terms=terms, expected=expected)


def check(case):
    case.other.train()
    found = engine.step(
        case.student,
        rows(),
        case.terms,
        teacher=Held(case.other),
        selection=Rho(keep=SHARE, reference=Held(REFERENCE)),
        micro_batch=3,
    )
    assert_equal(found, case.expected, selected=True)


def test_the_engine_has_none_of_them(case):
    check(case)


@pytest.mark.parametrize("fault", FAULTS)
def test_fault(case, fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check(case)


# Heads of different width, both wider than there are ids


class PaddedWithZeros(Held):
    """Ids that the teacher lacks get a logit of 0, which is worth something."""

    def read(self, batch):
        logits_at = super().read(batch)
        return lambda positions: torch.nn.functional.pad(logits_at(positions), (0, 4))


@pytest.mark.parametrize(
    ("widths", "teacher", "cut_to"),
    [((41, 45), Held, 41), ((45, 41), Held, 41), ((45, 41), PaddedWithZeros, 45)],
    ids=["only the teacher's head", "only the student's head", "padded"],
)
def test_bug_of_heads(widths, teacher, cut_to):
    """Cut to the other's width, the rows that stand for no id stay in every sum."""
    student, other = (given.model(seed=n, vocabulary=w, double=True) for n, w in enumerate(widths))
    terms = [term(KL)]
    known = oracle.model_teacher(other, VOCABULARY)
    expected = oracle.step(student, rows(), terms, vocabulary=VOCABULARY, teacher=known)
    good = engine.step(student, rows(), terms, teacher=Held(other), vocabulary=VOCABULARY)
    assert_equal(good, expected)
    faulty = engine.step(student, rows(), terms, teacher=teacher(other), vocabulary=cut_to)
    with pytest.raises(AssertionError):
        assert_equal(faulty, expected)


def test_no_model_computes_a_loss(case, monkeypatch):
    """Handed labels, a model shifts them itself and makes whole logits for a loss of its own."""
    from transformers import GPT2LMHeadModel, LlamaForCausalLM

    for model in (case.student, case.other, REFERENCE):
        given.proved(model)
    for kind in (LlamaForCausalLM, GPT2LMHeadModel):
        monkeypatch.setattr(kind, "forward", None)
    check(case)


def test_every_test_that_is_named_above_is_there():
    named = {*re.findall(r"\btest_\w+", __doc__)}
    files = Path(__file__).resolve().parents[1].rglob("test_*.py")
    there = {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())}
    assert named <= there
    faults = {*re.findall(r"\w+", " ".join(re.findall(r"test_fault \(([^)]*)\)", __doc__)))}
    assert faults <= {fault.__name__ for fault in FAULTS}
