"""Distributions over k known ids and a tail bucket with the mass of all others.

Teacher and student are coarsened to the same k + 1 buckets, and the label becomes the index of its
bucket. Both sides still sum to 1, so KL and other f-divergences stay true divergences: at least
0, with equality if and only if all buckets agree, and at most the divergence over the full
vocabulary (data processing inequality). A sum over the top k alone can be negative, and
renormalising these leaves the student's tail mass unconstrained; here the tail's gradient reaches
every logit in it.

The tail's logit is b = T log(sum of exp(z / T) over the others). A loss divides it by T like any
logit, and exp(b / T) is the others' sum: the softmax keeps its full normaliser, and the buckets are
those of the tempered distribution. If the teacher does not give its tail mass at T, both sides are
coarsened at temperature 1 and tempered afterwards, which is a different objective.
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

_NO_MASS = -1e4  # logit of a bucket without an id; finite, so that 0 * log is 0 and not NaN

Buckets = tuple[Tensor, Tensor, Tensor]
"""Student and teacher logits [n, k + 1], and the bucket of each label [n]."""


def to_sparse(
    student: Tensor, teacher: SparseLogits, labels: Tensor, temperature: float | None = 1.0
) -> Buckets:
    """Student logits [n, V], teacher and labels [n], coarsened to k + 1 buckets for a loss of this
    temperature. None: the temperature is not known.

    The tail mass is summed over the other ids, not computed as 1 - sum of the known ones, which
    would cancel where the tail is small.
    """
    ids, logs = teacher.ids, teacher.log_probabilities
    at = 1.0
    if temperature != 1 and teacher.tempered is not None:
        at, others_logit = _others_at(teacher.tempered, temperature)
        logs = torch.cat([logs[:, :-1], others_logit[:, None]], -1)
    if isinstance(teacher, GappedLogits):
        return _with_gaps(student, ids, logs, labels, at)
    if torch.compiler.is_compiling():  # the compiler fuses this into as few passes as _Buckets
        others = (student / at).scatter(1, ids, -math.inf).logsumexp(-1, keepdim=True)
        buckets = torch.cat([student.gather(1, ids), at * others], -1)
    else:
        buckets = _Buckets.apply(student, ids, at)  # type: ignore[no-untyped-call]
    return buckets, logs.to(student.dtype), bucket_of(labels, ids)


def _with_gaps(student: Tensor, ids: Tensor, logs: Tensor, labels: Tensor, at: float) -> Buckets:
    """The same where some buckets have no id; these get no mass on either side."""
    width, gaps = student.shape[1], ids < 0
    # Gaps are marked in an extra last column, which is cut off below.
    known = torch.zeros(len(ids), width + 1, dtype=torch.bool, device=ids.device)
    known.scatter_(1, torch.where(gaps, width, ids), True)
    others = (student / at).masked_fill(known[:, :width], -math.inf).logsumexp(-1, keepdim=True)
    buckets = torch.cat([student.gather(1, ids.clamp(min=0)), at * others], -1)
    empty = F.pad(gaps, (0, 1))
    logits = logs.to(student.dtype).masked_fill(empty, _NO_MASS)
    return buckets.masked_fill(empty, _NO_MASS), logits, bucket_of(labels, ids)


def _others_at(tempered: Mapping[float, Tensor], temperature: float | None) -> tuple[float, Tensor]:
    if temperature is not None and temperature in tempered:
        return temperature, tempered[temperature]
    given = ", ".join(f"{each:g}" for each in (1.0, *sorted(tempered)))
    wanted = "one that changes" if temperature is None else f"{temperature:g}"
    raise RunError(
        f"a loss is at temperature {wanted}, but the teacher gives the mass of its unknown ids at "
        f"{given} only; a teacher of all ids, such as the one that is cached, "
        "supports every temperature"
    )


class _Buckets(torch.autograd.Function):
    """Logits [n, V] and ids [n, k] -> logits of these ids and of all others together [n, k + 1].

    Half the passes over the vocabulary that autograd would take: one buffer [n, V] holds the
    exponentials of the forward pass, and becomes the gradient in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, ids: Tensor, temperature: float) -> Tensor:
        """The tail's logsumexp, stabilised by subtracting the largest logit."""
        smallest = torch.finfo(student.dtype)
        others = student.scatter(1, ids, -math.inf)
        # The clamps avoid -inf - -inf, and 0 / 0 in `backward`, where the others have no mass.
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
        """db/dz_j = exp(z_j / T) / sum over the others: their softmax. T and 1 / T cancel.

        The known ids pass their gradients through.
        """
        others, ctx.others = ctx.others, None
        assert others is not None, "the gradient of a coarse loss can be taken once"
        shares = others.mul_(gradient[:, -1:] / ctx.total)
        return shares.scatter_(1, ctx.ids, gradient[:, :-1]), None, None


def bucket_of(labels: Tensor, ids: Tensor) -> Tensor:
    """The index of each label among the ids; k, the tail, where it is none of them."""
    same = ids == labels[:, None]
    return torch.where(same.any(-1), same.int().argmax(-1), ids.shape[1])


def argmax_ids(teacher: Tensor | SparseLogits) -> Tensor:
    """The id of the highest probability among the known ids [n]."""
    if isinstance(teacher, SparseLogits):
        first = teacher.log_probabilities[:, :-1].argmax(-1, keepdim=True)
        return teacher.ids.gather(1, first)[:, 0]
    return teacher.argmax(-1)
