"""The LM head and the losses in chunks of tokens: [batch, time, vocabulary] never exists.

With states S [n, H], head weight W [V, H] and bias b [V], a chunk's logits are Z = S W^T + b. For
the gradient G = dL/dZ [n, V] the chain rule gives

    dL/dS = G W        dL/dW = G^T S        dL/db = sum of G over tokens

One autograd function computes Z and the teacher's logits of each chunk, gets G from the losses by a
nested autograd call, and applies these three products itself. It does all this in the forward pass,
while Z exists, so logits are neither kept nor recomputed; the backward pass only scales the result.
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
"""For each term what its loss prepared for these tokens, [n] or [n, k], or None."""

Answer = Tensor | SparseLogits | Parts | TwoVocabularies | None
"""A teacher's outputs on a chunk of tokens."""

Values = Callable[[Tensor, Answer, Tensor, Tensor, Prepared], tuple[Tensor, Tensor]]
"""Student and teacher logits [n, V], labels [n], weights [terms, n], prepared inputs -> each term's
weighted sum [terms], and the gradient of their total in the student's logits [n, V], which may
overwrite these."""


@dataclass(eq=False)
class ChunkedLossInputs:
    """One micro-batch's share of the objective."""

    positions: Tensor  # [n]: flat positions that at least one term sees
    labels: Tensor  # [n]
    weights: Tensor  # [terms, n]: weight / denominator where the term sees the token, else 0
    values: Values
    teacher: PartOutputs | None
    vocabulary: int
    chunk: int
    prepared: Prepared = ()
    bend: LogitTransform | None = None  # applied to the head's logits, such as a soft cap
    repeats: bool = False  # whether a position may occur twice
    scaled: bool = True  # whether anything multiplies the loss before its backward pass
    sums: Tensor = field(init=False)  # [terms], an output of ChunkedLoss for the log

    def chunks(self) -> Iterator[slice]:
        """The slice of tokens of each chunk."""
        return (slice(at, at + self.chunk) for at in range(0, len(self.positions), self.chunk))


class ChunkedLoss(torch.autograd.Function):
    """States [rows * time, H], head weight and bias, inputs -> the weighted sum of all terms."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        computed: Tensor | None,
        work: ChunkedLossInputs,
    ) -> Tensor:
        """Computes the sum and its gradients with respect to states, weight and bias.

        `computed` is `weight` in the dtype of the matrix products. Without a weight, the states are
        the logits themselves.
        """
        used = None if computed is None else computed[: work.vocabulary]
        used_bias = None if bias is None else upcast(bias[: work.vocabulary])
        inputs = (states, weight, bias)
        required = zip(inputs, ctx.needs_input_grad[:3], strict=True)
        gradients = _Gradients([_zeros(x) if wants else None for x, wants in required], used, work)
        buffer = _buffer(used, work)
        work.sums = states.new_zeros(len(work.weights), dtype=accumulation_dtype(states.dtype))
        for at in work.chunks():
            rows = work.positions[at]
            chunk_states = states[rows] if used is None else states[rows].to(used.dtype)
            if used is None:
                student = upcast(chunk_states[:, : work.vocabulary])
            else:
                student = logits_of(chunk_states, used, used_bias, buffer)
            sums, gradient = _values(student, rows, at, work)
            del student  # else two chunks of logits would be alive at once
            work.sums += sums
            gradients.add(gradient, rows, chunk_states)
            del gradient
        ctx.gradients, ctx.scaled = gradients, work.scaled
        ctx.types = tuple(None if x is None else x.dtype for x in inputs)
        return work.sums.sum()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients from `forward`. Never reads `grad_output` on the host.

        By the chain rule, every gradient is that of this function's output times `grad_output`,
        which holds the loss scale and the world size.
        """
        if torch.is_grad_enabled():
            raise NotImplementedError("a chunked loss has no gradient of its gradient")
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the gradient of a chunked loss can be taken once"
        factor = grad_output if ctx.scaled else None
        scaled = [
            None if gradient is None else gradient.to(kind)
            for gradient, kind in zip(gradients.times(factor), ctx.types, strict=True)
        ]
        return (*scaled, None, None)


class _Gradients:
    """Accumulates the gradients of states, head weight and bias; None where not required."""

    def __init__(
        self, gradients: list[Tensor | None], used: Tensor | None, work: ChunkedLossInputs
    ) -> None:
        self._to_states, self._to_weight, self._to_bias = gradients
        self._used, self._width, self._repeats = used, work.vocabulary, work.repeats
        self._scale = None if used is None else float16_scale(work.weights, used.dtype)

    def add(self, gradient: Tensor, rows: Tensor, states: Tensor) -> None:
        """Add a chunk: dL/dlogits [n, V], the rows of its states, and the states [n, H]."""
        if self._to_bias is not None:
            self._to_bias[: self._width] += gradient.sum(0)
        if self._used is None:
            self._add_to_states(rows, gradient)
            return
        factor = LogitsGradient(gradient, self._used.dtype, self._scale)
        # Every token has its own row of dL/dstates; dL/dweight sums over the tokens of all chunks.
        if self._to_states is not None:
            self._add_to_states(rows, factor.to_states(self._used))
        if self._to_weight is not None:
            factor.add_to_weight(self._to_weight[: self._width], states)

    def _add_to_states(self, rows: Tensor, gradient: Tensor) -> None:
        if self._to_states is None:
            return
        into = self._to_states[:, : gradient.shape[1]]
        if self._repeats:  # assignment would keep only one of several gradients of a position
            into.index_add_(0, rows, gradient)
        else:
            into[rows] = gradient

    def times(self, factor: Tensor | None) -> list[Tensor | None]:
        """All gradients times a scalar, in place; also divides out the float16 scale. None: 1."""
        gradients = (self._to_states, self._to_weight, self._to_bias)
        if factor is None:
            if self._scale is None:
                return [*gradients]
            factor = torch.ones_like(self._scale)
        # The bias gradient is a plain sum in float32 and was never scaled.
        of_products = factor if self._scale is None else factor / self._scale
        factors = (of_products, of_products, factor)
        return [None if x is None else x.mul_(by) for x, by in zip(gradients, factors, strict=True)]


def _values(
    student: Tensor, rows: Tensor, at: slice, work: ChunkedLossInputs
) -> tuple[Tensor, Tensor]:
    """Each term's weighted sum over a chunk, and the gradient in the head's logits."""
    teacher = None if work.teacher is None else work.teacher(rows)
    labels, weights = work.labels[at], work.weights[:, at]
    prepared = [None if each is None else each[at] for each in work.prepared]
    if work.bend is None:
        return work.values(student, teacher, labels, weights, prepared)
    # Losses see the transformed logits; `back` takes their gradient to the head's logits. The copy
    # keeps `bent` intact, as the gradient may overwrite its input.
    bent = work.bend(student)
    sums, gradient = work.values(bent.clone(), teacher, labels, weights, prepared)
    return sums, work.bend.back(gradient, bent)


def _buffer(weight: Tensor | None, work: ChunkedLossInputs) -> Tensor | None:
    """A buffer that all chunks' logits share. CUDA's caching allocator reuses memory anyway."""
    if weight is None or weight.is_cuda:
        return None
    rows = min(work.chunk, len(work.positions))
    return weight.new_empty(rows, len(weight), dtype=accumulation_dtype(weight.dtype))


def _zeros(like: Tensor | None) -> Tensor | None:
    return None if like is None else torch.zeros_like(like, dtype=accumulation_dtype(like.dtype))
