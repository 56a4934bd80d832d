"""Distributions over some ids and all others as one: bounds, gradients, extreme masses, labels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kdcore_losses import CrossEntropy, ForwardKL, ReverseKL, TotalVariation

from kdcore import (
    GappedLogits,
    PluginError,
    RunError,
    SparseLogits,
    Teacher,
    UsageError,
    read,
    read_nll,
)
from kdcore.objective.losses import per_token, values_of
from kdcore.objective.sparse import argmax_ids, bucket_of, to_sparse
from kdcore.objective.teachers import read_outputs
from kdcore.testing import check_teacher
from kdcore.testing.fakes import TableTeacher, make_batch

VOCABULARY = 11
LABELS = torch.tensor([0, 5, 10, 3])
BATCH = make_batch([[3, 1, 4, 1, 5], [9, 2, 6]])


def top(logits, k):
    """What is known of a teacher with these logits."""
    logs = logits.log_softmax(-1)
    known, ids = logs.topk(k)
    others = logs.scatter(1, ids, -math.inf).logsumexp(-1, keepdim=True)
    return SparseLogits(ids, torch.cat([known, others], -1))


def tempered(logits, k, temperature):
    """The same of a teacher that tells the others' mass at a temperature."""
    ids, logs, _ = top(logits, k)
    whole = logits.log_softmax(-1).scatter(1, ids, -math.inf)
    return SparseLogits(ids, logs, {temperature: temperature * (whole / temperature).logsumexp(-1)})


def masses(logits, ids):
    """By sums of probabilities."""
    p = logits.softmax(-1)
    known = p.gather(1, ids)
    outside = torch.ones_like(p).scatter(1, ids, 0.0)
    return torch.cat([known, (p * outside).sum(-1, keepdim=True)], -1)


def drawn(seed, scale=3.0, rows=4, dtype=torch.float64):
    made = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, rows, VOCABULARY, generator=made, dtype=dtype)


# KL of the coarsened distributions


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, VOCABULARY - 1), scale=st.floats(0.01, 30))
def test_never_negative_and_never_above_that_of_all_ids(seed, k, scale):
    student, teacher = drawn(seed, scale)
    found = per_token(ForwardKL(), student, top(teacher, k), LABELS)
    whole = per_token(ForwardKL(), student, teacher, LABELS)
    assert (found >= -1e-12).all() and (found <= whole + 1e-10 * (1 + whole)).all()
    if k == VOCABULARY - 1:
        torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", [ForwardKL(), ReverseKL(temperature=2.0), TotalVariation()])
def test_zero_where_the_student_equals_the_teacher(loss):
    student, _ = drawn(0)
    found = per_token(loss, student, top(student, 3), LABELS)
    torch.testing.assert_close(found, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("k", [1, 4, VOCABULARY - 1])
@pytest.mark.parametrize("loss", [ForwardKL, ReverseKL])
def test_value_and_gradient_are_those_of_the_masses(loss, k, temperature):
    """Where the teacher does not tell the others' mass at a temperature, both coarsened
    distributions are tempered, not what they were made of."""
    student, teacher = drawn(1)
    known = top(teacher, k)
    leaf = student.clone().requires_grad_()
    p, q = (masses(logits, known.ids) ** (1 / temperature) for logits in (teacher, leaf))
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    a, b = (p, q) if loss is ForwardKL else (q, p)
    expected = temperature**2 * (a * (a / b).log()).sum(-1)
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    values = values_of([loss(temperature=temperature)])
    found, to_logits = values(student, known, LABELS, torch.ones(1, 4, dtype=torch.float64))
    torch.testing.assert_close(found[0], expected.sum().detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(to_logits, gradient, rtol=1e-10, atol=1e-10)


def of_values(loss, student, teacher):
    ones = torch.ones(1, len(student), dtype=student.dtype)
    return values_of([loss])(student, teacher, LABELS, ones)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("k", [1, 4, VOCABULARY - 1])
@pytest.mark.parametrize("loss", [ForwardKL, ReverseKL])
def test_where_the_teacher_tells_it_what_is_tempered_is_coarsened(loss, k, temperature):
    student, teacher = drawn(7)
    known, tempering = tempered(teacher, k, temperature), loss(temperature=temperature)
    leaf = student.clone().requires_grad_()
    p, q = (masses(logits / temperature, known.ids) for logits in (teacher, leaf))
    a, b = (p, q) if loss is ForwardKL else (q, p)
    expected = temperature**2 * (a * (a / b).log()).sum()
    (gradient,) = torch.autograd.grad(expected, leaf)
    found, to_logits = of_values(tempering, student, known)
    torch.testing.assert_close(found[0], expected.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(to_logits, gradient, rtol=1e-10, atol=1e-10)
    if k == VOCABULARY - 1:  # nothing is lost
        whole, exact = of_values(tempering, student, teacher)
        torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(to_logits, exact, rtol=1e-10, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, VOCABULARY - 1), temperature=st.floats(0.25, 8))
def test_at_no_temperature_above_the_divergence_of_all_ids(seed, k, temperature):
    student, teacher = drawn(seed)
    loss = ForwardKL(temperature=temperature)
    found = per_token(loss, student, tempered(teacher, k, temperature), LABELS)
    whole = per_token(loss, student, teacher, LABELS)
    assert (found >= -1e-9).all() and (found <= whole + 1e-9 * (1 + whole)).all()


class Cooling(ForwardKL):
    """At a temperature that nobody knows ahead."""

    def temperatures(self):
        return []


@pytest.mark.parametrize("loss, at", [(ForwardKL(temperature=3.0), "3"), (Cooling(), "one that")])
def test_a_temperature_that_the_teacher_does_not_tell(loss, at):
    student, teacher = drawn(8)
    with pytest.raises(
        RunError, match=f"a loss is at temperature {at}.* its unknown ids at 1, 2 on"
    ):
        per_token(loss, student, tempered(teacher, 3, 2.0), LABELS)


def test_losses_of_several_temperatures_in_one_recipe():
    student, teacher = drawn(9)
    known = tempered(teacher, 3, 2.0)
    losses = [ForwardKL(temperature=2.0), ForwardKL(), CrossEntropy()]
    ones = torch.ones(3, 4, dtype=torch.float64)
    together, _ = values_of(losses)(student, known, LABELS, ones)
    alone = [of_values(loss, student, known)[0][0] for loss in losses]
    assert together.tolist() == [each.item() for each in alone]


@pytest.mark.parametrize("gap", [80.0, 300.0, -80.0, -300.0])
def test_small_masses_keep_their_digits_at_a_temperature(gap):
    student = torch.zeros(1, VOCABULARY)
    student[0, :3] = gap
    logs = torch.tensor([[0.25] * 4]).log()
    known = SparseLogits(torch.tensor([[0, 1, 2]]), logs, {2.0: logs[:, 3]})
    leaf = student.clone().requires_grad_()
    found = (to_sparse(leaf, known, LABELS[:1], 2.0)[0] / 2).log_softmax(-1)
    exact = (student.double() / 2).log_softmax(-1)[0, 3:].logsumexp(-1)
    assert found[0, 3].item() == pytest.approx(exact.item(), rel=1e-6, abs=1e-6)
    (gradient,) = torch.autograd.grad(found[0, 3], leaf)
    assert gradient.isfinite().all()


# Masses near 0 and 1, ties


@pytest.mark.parametrize("gap", [30.0, 80.0, 300.0, -30.0, -80.0, -300.0])
def test_small_masses_keep_their_digits(gap):
    """As what is left of 1, a mass below 1e-7 would be nothing but rounding in float32."""
    student = torch.zeros(1, VOCABULARY)
    student[0, :3] = gap
    known = SparseLogits(torch.tensor([[0, 1, 2]]), torch.tensor([[0.25] * 4]).log())
    leaf = student.clone().requires_grad_()
    buckets, _, _ = to_sparse(leaf, known, LABELS[:1])
    found = buckets.log_softmax(-1)
    whole = student.double().logsumexp(-1)
    others = student.double()[0, 3:].logsumexp(-1) - whole
    assert found[0, 3].item() == pytest.approx(others.item(), rel=1e-6, abs=1e-6)
    (gradient,) = torch.autograd.grad(found[0, 3], leaf)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("rest", [-math.inf, -200.0, 0.0])
@pytest.mark.parametrize(
    "loss", [ForwardKL(), ReverseKL(), TotalVariation(), ForwardKL(temperature=2)]
)
def test_finite_where_the_others_have_nothing_or_all(loss, rest):
    known = -math.log(3) if rest < 0 else -200.0
    logs = torch.tensor([[known, known, known, rest]]).expand(4, 4)
    teacher = SparseLogits(torch.arange(3).expand(4, 3), logs)
    student = drawn(2, dtype=torch.float32)[0]
    sums, gradient = values_of([loss])(student, teacher, LABELS, torch.ones(1, 4))
    assert sums.isfinite().all() and gradient.isfinite().all()
    if rest == -math.inf and loss.temperature == 1 and isinstance(loss, ForwardKL):
        q = student.log_softmax(-1)[:, :3].sum(-1) / 3
        torch.testing.assert_close(sums[0], (-math.log(3) - q).sum())
        # q - p, as for a teacher that excludes all others.
        p = torch.zeros_like(student)
        p[:, :3] = 1 / 3
        torch.testing.assert_close(gradient, student.softmax(-1) - p)


def test_ties():
    student, teacher = torch.zeros(4, VOCABULARY), torch.zeros(4, VOCABULARY)
    values = per_token(ForwardKL(), student, top(teacher, 4), LABELS)
    assert values.abs().max() < 1e-6
    assert len(set(top(teacher, 4).ids[0].tolist())) == 4


def test_ids_that_the_student_excludes():
    student, teacher = drawn(3)
    student[:, 7] = -math.inf
    known = SparseLogits(
        torch.arange(3).expand(4, 3), masses(teacher, torch.arange(3).expand(4, 3)).log()
    )
    sums, gradient = values_of([ForwardKL()])(student, known, LABELS, torch.ones(1, 4).double())
    assert sums.isfinite().all() and gradient.isfinite().all() and not gradient[:, 7].any()


def test_a_student_that_excludes_all_others():
    student = torch.zeros(4, VOCABULARY)
    student[:, 3:] = -math.inf
    logs = torch.tensor([[0.3, 0.3, 0.4 - 1e-3, 1e-3]]).log().expand(4, 4)
    leaf = student.clone().requires_grad_()
    buckets, _, _ = to_sparse(leaf, SparseLogits(torch.arange(3).expand(4, 3), logs), LABELS)
    assert (buckets[:, 3] == -math.inf).all()
    (gradient,) = torch.autograd.grad(buckets[:, :3].sum(), leaf)
    assert gradient.equal(torch.tensor([1.0] * 3 + [0.0] * 8).expand(4, -1))


def test_it_does_not_write_into_the_students_logits():
    student, teacher = drawn(6)
    before = student.clone()
    values_of([ForwardKL()])(student, top(teacher, 3), LABELS, torch.ones(1, 4).double())
    assert student.equal(before)


# Labels, and losses that need no teacher


def test_a_label_becomes_its_bucket():
    ids = torch.tensor([[4, 2, 9], [1, 0, 3]])
    assert bucket_of(torch.tensor([9, 7]), ids).tolist() == [2, 3]
    seen = {}

    class Looks(ForwardKL):
        def per_token(self, student, teacher, labels):
            seen.update(labels=labels, shapes=(student.shape, teacher.shape))
            return super().per_token(student, teacher, labels)

    student, teacher = drawn(4)
    per_token(Looks(), student, top(teacher, 5), LABELS)
    assert seen["shapes"] == ((4, 6), (4, 6))
    likely = top(teacher, 5).ids.tolist()
    expected = [
        row.index(y) if y in row else 5 for row, y in zip(likely, LABELS.tolist(), strict=True)
    ]
    assert seen["labels"].tolist() == expected


def test_what_needs_no_teacher_sees_all_ids():
    student, teacher = drawn(5)
    weights = torch.ones(2, 4, dtype=torch.float64)
    both, _ = values_of([CrossEntropy(), ForwardKL()])(student, top(teacher, 2), LABELS, weights)
    alone, _ = values_of([CrossEntropy()])(student, None, LABELS, weights[:1])
    assert both[0] == alone[0]


def test_the_likeliest_id_is_never_the_bucket_of_all_others():
    logs = torch.tensor([[0.1, 0.2, 0.7]]).log()
    assert argmax_ids(SparseLogits(torch.tensor([[8, 3]]), logs)).tolist() == [3]
    assert argmax_ids(torch.tensor([[1.0, 5.0, 2.0]])).tolist() == [1]


# Teachers


class Knows(TableTeacher):
    """What a table's rows say of their three likeliest ids."""

    name = "knows"

    def ids_known(self):
        return 3

    def read(self, batch):
        ids, table = batch.input_ids.flatten(), self.table()
        return lambda positions: self.said(top(table[ids[positions]], 3))

    def said(self, known):
        return known


def test_a_teacher_that_knows_some_ids():
    check_teacher(Knows(), BATCH)
    found = read_outputs(Knows(), BATCH)(BATCH.valid)
    assert found.ids.shape == (6, 3) and found.log_probabilities.dtype == torch.float32
    with pytest.raises(UsageError, match="knows 3 ids at each position and not the others"):
        read(Knows(), BATCH)
    with pytest.raises(UsageError, match="knows 3 ids"):
        read_nll(Knows(), BATCH)
    assert not Knows().gives_losses() and TableTeacher().gives_losses()


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda known: known.log_probabilities, "gave Tensor from read, expected a SparseLogits"),
        (
            lambda known: SparseLogits(known.ids.int(), known.log_probabilities),
            "a SparseLogits of torch.int32",
        ),
        (
            lambda known: SparseLogits(known.ids[1:], known.log_probabilities),
            r"\[6, k\] and \[6, k \+ 1\]",
        ),
        (lambda known: SparseLogits(known.ids, known.log_probabilities[:, 1:]), "k below 64"),
        (lambda known: SparseLogits(known.ids, known.log_probabilities.long()), "floating-point"),
    ],
)
def test_a_broken_answer_names_the_teacher(spoil, said):
    teacher = Knows()
    teacher.said = spoil
    with pytest.raises(PluginError, match=said):
        read_outputs(teacher, BATCH)(BATCH.valid)


def test_a_teacher_of_losses_has_losses():
    class Losses(Teacher):
        name = "losses"

        def gives_logits(self):
            return False

        def nll(self, batch):
            return lambda positions, labels: torch.ones(len(positions))

    assert Losses().gives_losses()
    check_teacher(Losses(), BATCH)
    assert np.allclose(read_nll(Losses(), BATCH)(BATCH.valid, BATCH.valid), 1)


@pytest.mark.parametrize("loss", [ForwardKL(), ForwardKL(temperature=2.0), ReverseKL()])
def test_a_bucket_without_an_id_is_none(loss):
    """Whatever mass it is given, value and gradient are those of the others alone."""
    student, teacher = drawn(3)
    ids, logs, more = tempered(teacher, 3, 2.0)
    gaps = torch.tensor([[-1, -1], [-1, -1], [-1, -1], [-1, -1]])
    wide = torch.cat([ids, gaps], -1)
    heavy = torch.cat([logs[:, :3], torch.zeros(4, 2, dtype=logs.dtype), logs[:, 3:]], -1)
    found = []
    for known in (SparseLogits(ids, logs, more), GappedLogits(wide, heavy, more)):
        leaf = student.clone().requires_grad_()
        values = per_token(loss, leaf, known, LABELS)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
        found.append((values.detach(), gradient))
    torch.testing.assert_close(*found, atol=1e-12, rtol=1e-10)


def test_no_id_at_all_leaves_one_bucket():
    student, _ = drawn(4)
    none = GappedLogits(torch.full((4, 2), -1), torch.zeros(4, 3, dtype=torch.float64))
    leaf = student.clone().requires_grad_()
    values = per_token(ForwardKL(), leaf, none, LABELS)
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    assert values.abs().max() < 1e-12 and gradient.abs().max() < 1e-12
