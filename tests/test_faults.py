"""Faults that distillation code is known for, put into the engine one by one: `oracle` sees each.

What the engine does instead has its tests in the files of the parts; here the net is tested.
"""

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
from kdcore_selections import Rho

from kdcore import objective, reading, tokens
from kdcore.batches import NOT_TRAINED, Collate, _Arrays
from kdcore.objective import Seen

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
    """With transformers' default, packed documents see each other."""
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

    monkeypatch.setattr(Seen, "count", count)


def mean_over_what_is_not_kept(monkeypatch):
    monkeypatch.setattr(Seen, "count", lambda seen, on, dtype: seen.valid.to(dtype))


def sums_instead_of_means(monkeypatch):
    monkeypatch.setattr(Seen, "count", lambda seen, on, dtype: torch.tensor(1.0, dtype=dtype))


def ranked_by_micro_batch(monkeypatch):
    inner = engine.trainer

    def trainer(*arguments, **options):
        return inner(*arguments, **(options | {"scope": "micro_batch"}))

    monkeypatch.setattr(engine, "trainer", trainer)


def the_lowest_kept(monkeypatch):
    inner = tokens.Tokens.top
    monkeypatch.setattr(
        tokens.Tokens, "top", lambda some, scores, share: inner(some, -scores, share)
    )


def teacher_with_dropout(monkeypatch):
    monkeypatch.setattr(reading, "_still", lambda teacher: None)


def temperature_on_one_side(monkeypatch):
    inner = objective.checked_values

    def one_sided(loss, student, teacher, labels):
        return inner(loss, student, teacher if teacher is None else teacher * 2, labels)

    monkeypatch.setattr(objective, "checked_values", one_sided)


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
