"""The head and the losses, a chunk of tokens at a time: [batch, time, vocabulary] never exists.

One autograd function makes the student's and the teacher's logits of a chunk, lets autograd go
from the per-token losses to that chunk's logits only, and does the matrix products of the head's
backward itself. Gradients are made in the forward pass, so no logits are made twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdcore.data.batch import AnswersAt, Coarse
from kdcore.models.causal_lm import Bend
from kdcore.models.head import (
    add_weight_gradient,
    logits_of,
    states_gradient,
    unrounded,
    unrounded_type,
)

Prepared = Sequence[Tensor | None]
"""For each term what its loss prepared of these tokens, [n] or [n, k]; None where it does not."""

Values = Callable[[Tensor, Tensor | Coarse | None, Tensor, Tensor, Prepared], tuple[Tensor, Tensor]]
"""Student and teacher logits [n, V], labels [n], weights [terms, n] and what was prepared -> each
term's weighted sum [terms], and the gradient of their total in the student's logits [n, V], which
may take their place in memory."""


@dataclass(eq=False)
class Work:
    """One micro-batch's share of the objective."""

    positions: Tensor  # [n]: the flat positions that some term sees
    labels: Tensor  # [n]
    weights: Tensor  # [terms, n]: weight over denominator where the term sees the token, else 0
    values: Values
    teacher: AnswersAt | None
    vocabulary: int
    chunk: int
    prepared: Prepared = ()
    bend: Bend | None = None  # what the model does to its head's logits
    sums: Tensor = field(init=False)  # [terms], left here by the function for the log

    def chunks(self) -> Iterator[slice]:
        """Where each chunk of tokens begins and ends."""
        return (slice(at, at + self.chunk) for at in range(0, len(self.positions), self.chunk))


class ChunkedLoss(torch.autograd.Function):
    """States [rows * time, H], head weight and bias, work -> the weighted sum of all terms."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        computed: Tensor | None,
        work: Work,
    ) -> Tensor:
        """`computed` is `weight` in the type that products are made in.

        Without a weight the states are the logits themselves.
        """
        wanted = ctx.needs_input_grad
        to_states = _zeros(states) if wanted[0] else None
        to_weight = _zeros(weight) if wanted[1] else None
        to_bias = _zeros(bias) if wanted[2] else None
        used = None if computed is None else computed[: work.vocabulary]
        used_bias = None if bias is None else unrounded(bias[: work.vocabulary])
        buffer = _buffer(used, work)
        work.sums = states.new_zeros(len(work.weights), dtype=unrounded_type(states.dtype))
        for at in work.chunks():
            rows = work.positions[at]
            some = states[rows] if used is None else states[rows].to(used.dtype)
            if used is None:
                student = unrounded(some[:, : work.vocabulary])
            else:
                student = logits_of(some, used, used_bias, buffer)
            sums, gradient = _values(student, rows, at, work)
            del student  # else it would live beside the next one
            work.sums += sums
            if to_states is not None:
                to_logits = gradient if used is None else states_gradient(gradient, used)
                to_states[rows, : to_logits.shape[1]] = to_logits
            if to_weight is not None:
                add_weight_gradient(to_weight[: work.vocabulary], gradient, some)
            if to_bias is not None:
                to_bias[: work.vocabulary] += gradient.sum(0)
            del gradient
        ctx.gradients = (to_states, to_weight, to_bias)
        ctx.types = tuple(None if x is None else x.dtype for x in (states, weight, bias))
        return work.sums.sum()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients made in `forward`. `grad_output` is never read on the host."""
        if torch.is_grad_enabled():
            raise NotImplementedError("a chunked loss has no gradient of its gradient")
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the gradient of a chunked loss can be taken once"
        scaled = [
            None if gradient is None else gradient.mul_(grad_output).to(kind)
            for gradient, kind in zip(gradients, ctx.types, strict=True)
        ]
        return (*scaled, None, None)


def _values(student: Tensor, rows: Tensor, at: slice, work: Work) -> tuple[Tensor, Tensor]:
    """Each term's weighted sum over a chunk, and the gradient in its head's logits."""
    teacher = None if work.teacher is None else work.teacher(rows)
    labels, weights = work.labels[at], work.weights[:, at]
    prepared = [None if each is None else each[at] for each in work.prepared]
    if work.bend is None:
        return work.values(student, teacher, labels, weights, prepared)
    bent = work.bend(student)
    sums, gradient = work.values(bent.clone(), teacher, labels, weights, prepared)
    return sums, work.bend.back(gradient, bent)


def _buffer(weight: Tensor | None, work: Work) -> Tensor | None:
    """One place for the student's logits of every chunk. CUDA's allocator has that by itself."""
    if weight is None or weight.is_cuda:
        return None
    rows = min(work.chunk, len(work.positions))
    return weight.new_empty(rows, len(weight), dtype=unrounded_type(weight.dtype))


def _zeros(like: Tensor | None) -> Tensor | None:
    return None if like is None else torch.zeros_like(like, dtype=unrounded_type(like.dtype))
