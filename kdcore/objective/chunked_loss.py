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

from kdcore.data.batch import PartOutputs, Parts, SparseLogits, TwoVocabularies
from kdcore.models.head import (
    LogitsGradient,
    accumulation_dtype,
    float16_scale,
    logits_of,
    upcast,
)
from kdcore.models.logit_transforms import LogitTransform

Prepared = Sequence[Tensor | None]
"""For each term what its loss prepared of these tokens, [n] or [n, k]; None where it does not."""

Answer = Tensor | SparseLogits | Parts | TwoVocabularies | None
"""What a teacher says of a chunk of tokens."""

Values = Callable[[Tensor, Answer, Tensor, Tensor, Prepared], tuple[Tensor, Tensor]]
"""Student and teacher logits [n, V], labels [n], weights [terms, n] and what was prepared -> each
term's weighted sum [terms], and the gradient of their total in the student's logits [n, V], which
may take their place in memory."""


@dataclass(eq=False)
class ChunkedLossInputs:
    """One micro-batch's share of the objective."""

    positions: Tensor  # [n]: the flat positions that some term sees
    labels: Tensor  # [n]
    weights: Tensor  # [terms, n]: weight over denominator where the term sees the token, else 0
    values: Values
    teacher: PartOutputs | None
    vocabulary: int
    chunk: int
    prepared: Prepared = ()
    bend: LogitTransform | None = None  # what the model does to its head's logits
    repeats: bool = False  # whether a position may come twice
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
        work: ChunkedLossInputs,
    ) -> Tensor:
        """`computed` is `weight` in the type that products are made in.

        Without a weight the states are the logits themselves.
        """
        used = None if computed is None else computed[: work.vocabulary]
        used_bias = None if bias is None else upcast(bias[: work.vocabulary])
        inputs = (states, weight, bias)
        wanted = zip(inputs, ctx.needs_input_grad[:3], strict=True)
        made = _Gradients([_zeros(x) if wants else None for x, wants in wanted], used, work)
        buffer = _buffer(used, work)
        work.sums = states.new_zeros(len(work.weights), dtype=accumulation_dtype(states.dtype))
        for at in work.chunks():
            rows = work.positions[at]
            some = states[rows] if used is None else states[rows].to(used.dtype)
            if used is None:
                student = upcast(some[:, : work.vocabulary])
            else:
                student = logits_of(some, used, used_bias, buffer)
            sums, gradient = _values(student, rows, at, work)
            del student  # else it would live beside the next one
            work.sums += sums
            made.add(gradient, rows, some)
            del gradient
        ctx.gradients = made
        ctx.types = tuple(None if x is None else x.dtype for x in inputs)
        return work.sums.sum()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients made in `forward`. `grad_output` is never read on the host."""
        if torch.is_grad_enabled():
            raise NotImplementedError("a chunked loss has no gradient of its gradient")
        made, ctx.gradients = ctx.gradients, None
        assert made is not None, "the gradient of a chunked loss can be taken once"
        scaled = [
            None if gradient is None else gradient.to(kind)
            for gradient, kind in zip(made.times(grad_output), ctx.types, strict=True)
        ]
        return (*scaled, None, None)


class _Gradients:
    """In the states, the head's weight and its bias, each None where nobody wants it."""

    def __init__(
        self, each: list[Tensor | None], used: Tensor | None, work: ChunkedLossInputs
    ) -> None:
        self._to_states, self._to_weight, self._to_bias = each
        self._used, self._width, self._repeats = used, work.vocabulary, work.repeats
        self._scale = None if used is None else float16_scale(work.weights, used.dtype)

    def add(self, gradient: Tensor, rows: Tensor, states: Tensor) -> None:
        """A chunk's: its gradient in the logits [n, V], where its states [n, H] are, and they."""
        if self._to_bias is not None:
            self._to_bias[: self._width] += gradient.sum(0)
        if self._used is None:
            self._add_to_states(rows, gradient)
            return
        factor = LogitsGradient(gradient, self._used.dtype, self._scale)
        if self._to_states is not None:
            self._add_to_states(rows, factor.to_states(self._used))
        if self._to_weight is not None:
            factor.add_to_weight(self._to_weight[: self._width], states)

    def _add_to_states(self, rows: Tensor, gradient: Tensor) -> None:
        if self._to_states is None:
            return
        into = self._to_states[:, : gradient.shape[1]]
        if self._repeats:
            into.index_add_(0, rows, gradient)
        else:
            into[rows] = gradient

    def times(self, factor: Tensor) -> list[Tensor | None]:
        """All of them times a scalar, in place; what float16 was scaled by goes out here."""
        of_products = factor if self._scale is None else factor / self._scale
        factors = (of_products, of_products, factor)
        each = (self._to_states, self._to_weight, self._to_bias)
        return [None if x is None else x.mul_(by) for x, by in zip(each, factors, strict=True)]


def _values(
    student: Tensor, rows: Tensor, at: slice, work: ChunkedLossInputs
) -> tuple[Tensor, Tensor]:
    """Each term's weighted sum over a chunk, and the gradient in its head's logits."""
    teacher = None if work.teacher is None else work.teacher(rows)
    labels, weights = work.labels[at], work.weights[:, at]
    prepared = [None if each is None else each[at] for each in work.prepared]
    if work.bend is None:
        return work.values(student, teacher, labels, weights, prepared)
    bent = work.bend(student)
    sums, gradient = work.values(bent.clone(), teacher, labels, weights, prepared)
    return sums, work.bend.back(gradient, bent)


def _buffer(weight: Tensor | None, work: ChunkedLossInputs) -> Tensor | None:
    """One place for the student's logits of every chunk. CUDA's allocator has that by itself."""
    if weight is None or weight.is_cuda:
        return None
    rows = min(work.chunk, len(work.positions))
    return weight.new_empty(rows, len(weight), dtype=accumulation_dtype(weight.dtype))


def _zeros(like: Tensor | None) -> Tensor | None:
    return None if like is None else torch.zeros_like(like, dtype=accumulation_dtype(like.dtype))
