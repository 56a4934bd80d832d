"""Distributions over a few ids and one bucket for all others, which stand for a whole vocabulary.

A loss compares them as it compares any two distributions: the student's logits are coarsened to the
same buckets, with the gradient of all of them, and the label becomes the index of its bucket. So
every divergence is exactly that of the two coarsened distributions. A bucket has one logit, which a
loss divides by its temperature T like any other: it is T times the log of the others' sum of
exp(logit / T), so that what is coarsened is the tempered distribution, as a loss over all ids has
it. Where the teacher does not tell its others' mass at T, the distributions at temperature 1 are
coarsened first and tempered then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcore.data.batch import GappedLogits, SparseLogits
from kdcore.errors import RunError

_NO_MASS = -1e4  # the logit of a bucket without an id: finite, so that 0 times its log is 0

Buckets = tuple[Tensor, Tensor, Tensor]
"""Student and teacher logits [n, k + 1], and the labels' buckets [n]."""


def to_sparse(
    student: Tensor, teacher: SparseLogits, labels: Tensor, temperature: float | None = 1.0
) -> Buckets:
    """Student logits [n, V], teacher and labels [n] as a loss of this temperature sees them: over
    k + 1 buckets. Temperature None: nobody knows it.

    The others' mass is summed without the known ones, not as what these leave of 1: it keeps its
    digits where it is small.
    """
    ids, logs = teacher.ids, teacher.log_probabilities
    at = 1.0
    if temperature != 1 and teacher.tempered is not None:
        at, others_logit = _others_at(teacher.tempered, temperature)
        logs = torch.cat([logs[:, :-1], others_logit[:, None]], -1)
    if isinstance(teacher, GappedLogits):
        return _with_gaps(student, ids, logs, labels, at)
    if torch.compiler.is_compiling():  # which makes as few passes of the plain way
        others = (student / at).scatter(1, ids, -math.inf).logsumexp(-1, keepdim=True)
        buckets = torch.cat([student.gather(1, ids), at * others], -1)
    else:
        buckets = _Buckets.apply(student, ids, at)  # type: ignore[no-untyped-call]
    return buckets, logs.to(student.dtype), bucket_of(labels, ids)


def _with_gaps(student: Tensor, ids: Tensor, logs: Tensor, labels: Tensor, at: float) -> Buckets:
    """The same where some buckets have no id: these have no mass on either side."""
    width, gaps = student.shape[1], ids < 0
    known = torch.zeros(len(ids), width + 1, dtype=torch.bool, device=ids.device)
    known.scatter_(1, torch.where(gaps, width, ids), True)
    others = (student / at).masked_fill(known[:, :width], -math.inf).logsumexp(-1, keepdim=True)
    buckets = torch.cat([student.gather(1, ids.clamp(min=0)), at * others], -1)
    empty = F.pad(gaps, (0, 1))
    told = logs.to(student.dtype).masked_fill(empty, _NO_MASS)
    return buckets.masked_fill(empty, _NO_MASS), told, bucket_of(labels, ids)


def _others_at(tempered: Mapping[float, Tensor], temperature: float | None) -> tuple[float, Tensor]:
    if temperature is not None and temperature in tempered:
        return temperature, tempered[temperature]
    told = ", ".join(f"{each:g}" for each in (1.0, *sorted(tempered)))
    wanted = "one that changes" if temperature is None else f"{temperature:g}"
    raise RunError(
        f"a loss is at temperature {wanted}, and the teacher gives the mass of the ids that it "
        f"does not know at {told} only; a teacher of all ids, such as the one that is cached, "
        "serves every temperature"
    )


class _Buckets(torch.autograd.Function):
    """Logits [n, V] and ids [n, k] -> logits of these ids and of all others together [n, k + 1].

    Half the passes over the vocabulary that autograd would make: one buffer holds what the forward
    pass sums, and in the backward pass becomes the gradient.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, ids: Tensor, temperature: float) -> Tensor:
        """The log of the sum of the others' exponentials, from the largest down."""
        smallest = torch.finfo(student.dtype)
        others = student.scatter(1, ids, -math.inf)
        largest = others.amax(-1, keepdim=True).clamp_(min=smallest.min)
        apart = others.sub_(largest)
        if temperature != 1:
            apart.div_(temperature)
        total = apart.exp_().sum(-1, keepdim=True)
        ctx.others, ctx.ids, ctx.total = others, ids, total.clamp(min=smallest.tiny)
        logit = total.log() if temperature == 1 else temperature * total.log()
        return torch.cat([student.gather(1, ids), logit + largest], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The others get theirs by their shares."""
        others, ctx.others = ctx.others, None
        assert others is not None, "the gradient of a coarse loss can be taken once"
        shares = others.mul_(gradient[:, -1:] / ctx.total)
        return shares.scatter_(1, ctx.ids, gradient[:, :-1]), None, None


def bucket_of(labels: Tensor, ids: Tensor) -> Tensor:
    """Where each label stands among its ids; behind them where it is none of them."""
    same = ids == labels[:, None]
    return torch.where(same.any(-1), same.int().argmax(-1), ids.shape[1])


def argmax_ids(teacher: Tensor | SparseLogits) -> Tensor:
    """The id of the highest probability, of those that are known [n]."""
    if isinstance(teacher, SparseLogits):
        first = teacher.log_probabilities[:, :-1].argmax(-1, keepdim=True)
        return teacher.ids.gather(1, first)[:, 0]
    return teacher.argmax(-1)
