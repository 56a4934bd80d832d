"""Matrix products of the LM head, in chunks and at full precision.

Results are float32, and float64 where the weights are. Half weights on a CUDA device are multiplied
on tensor cores and come out in float32, never rounded to half. A CPU has no such product, and
without half-precision units a very slow one; there the weight is upcast block by block instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcore.data.batch import Batch, LogitsFn

_BLOCK = 16_384  # rows of the weight upcast at a time
_IN_CACHE = 2**20  # numbers, of 4 bytes, that stay in the cache of a core
_HALF = (torch.bfloat16, torch.float16)


def upcast(tensor: Tensor) -> Tensor:
    """The same numbers in float32, or in float64 where they are."""
    return tensor.to(accumulation_dtype(tensor.dtype))


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def no_autocast(device: str) -> AbstractContextManager[None]:
    """Types are as they are written until the block ends. Free where nothing is cast anyway."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def logits_of(
    states: Tensor, weight: Tensor, bias: Tensor | None = None, buffer: Tensor | None = None
) -> Tensor:
    """States [n, H], weight [V, H] and bias [V] -> logits [n, V], in `buffer` [n or more, V]."""
    out = None if buffer is None else buffer[: len(states)]
    with no_autocast(states.device.type):
        logits = _product(states, weight, out)
        return logits if bias is None else logits.add_(bias)


def _product(states: Tensor, weight: Tensor, out: Tensor | None) -> Tensor:
    if weight.dtype not in _HALF:
        return torch.mm(states.to(weight.dtype), weight.t(), out=out)
    if weight.is_cuda:
        return torch.mm(states.to(weight.dtype), weight.t(), out_dtype=torch.float32)
    states = states.float()
    logits = states.new_empty(states.shape[0], weight.shape[0]) if out is None else out
    for rows in _blocks(weight):
        logits[:, rows] = states @ weight[rows].float().t()
    return logits


class LogitsGradient:
    """A chunk's gradient in the logits [n, V], for the two products of the head's backward.

    On a GPU half products take it in the half type of `operand`, cast once. float16 has no numbers
    near 1e-8, where gradients that are divided by a step's tokens are: there it is multiplied by
    `scale` first, and so are both results.
    """

    def __init__(self, gradient: Tensor, operand: torch.dtype, scale: Tensor | None = None) -> None:
        self._in_half = gradient.is_cuda and operand in _HALF
        self._gradient = _in_type(gradient, operand, scale) if self._in_half else gradient

    def to_states(self, weight: Tensor) -> Tensor:
        """With weight [V, H]: the gradient in the states [n, H]."""
        if self._in_half:
            return torch.mm(self._gradient, weight, out_dtype=torch.float32)
        if weight.dtype not in _HALF:
            return self._gradient @ weight
        total = self._gradient.new_zeros(self._gradient.shape[0], weight.shape[1])
        for rows in _blocks(weight):
            total.addmm_(self._gradient[:, rows], weight[rows].float())
        return total

    def add_to_weight(self, total: Tensor, states: Tensor) -> None:
        """With states [n, H]: added to the gradient in the weight [V, H]."""
        if self._in_half:
            torch.addmm(total, self._gradient.t(), states, out_dtype=torch.float32, out=total)
        else:
            total.addmm_(self._gradient.t(), states.to(total.dtype))


def _in_type(gradient: Tensor, dtype: torch.dtype, scale: Tensor | None) -> Tensor:
    if scale is None:
        return gradient.to(dtype)
    return torch.mul(gradient, scale, out=torch.empty_like(gradient, dtype=dtype))


_HEADROOM = 2**8  # below float16's 65,504, above what is left of a flat distribution's tail


def float16_scale(weights: Tensor, operand: torch.dtype) -> Tensor | None:
    """By what a gradient is multiplied before it is float16: a power of two, on the device.

    `weights` [terms, n] are the largest numbers that the gradient of a usual loss has. None where
    nothing is cast to float16.
    """
    if not weights.is_cuda or operand != torch.float16 or not weights.numel():
        return None
    largest = weights.abs().amax().clamp(min=2.0**-64)
    mantissa, _ = torch.frexp(largest)
    return _HEADROOM * mantissa / largest


def _blocks(weight: Tensor) -> Iterator[slice]:
    return (slice(at, at + _BLOCK) for at in range(0, weight.shape[0], _BLOCK))


def nll_from_logits(logits_at: LogitsFn, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
    """Negative log-likelihoods from logits that are made a chunk of positions at a time."""
    device = batch.labels.device
    size = chunk_size(batch.vocabulary, device)
    if device.type == "cpu":
        size *= 2  # no second copy of the logits is made, and larger products are faster ones

    def shared(logits: Tensor) -> Tensor:
        return upcast(logits[:, : batch.vocabulary])

    def nll(positions: Tensor, labels: Tensor) -> Tensor:
        pieces = zip(torch.split(positions, size), torch.split(labels, size), strict=True)
        return torch.cat([nll_of(shared(logits_at(some)), label) for some, label in pieces])

    return torch.no_grad()(nll)


def nll_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits [n, V], labels [n] -> negative log-likelihoods [n].

    On a CPU a few rows at a time, whose probabilities stay in its cache: the same bits, twice as
    fast.
    """
    on_cpu = logits.device.type == "cpu"
    rows = max(1, _IN_CACHE // logits.shape[-1] if on_cpu else len(logits))
    pieces = zip(torch.split(logits, rows), torch.split(labels, rows), strict=True)
    return torch.cat([F.cross_entropy(some, label, reduction="none") for some, label in pieces])


def chunk_size(vocabulary: int, device: torch.device, free: int | None = None) -> int:
    """Tokens in a chunk, a power of two, which matrix products like.

    One float32 copy of its logits is near 64 MB, on a GPU 512 MB; where `free` bytes are little,
    it is at most a thirty-second of them, as losses need several copies.
    """
    copy = 2**29 if device.type == "cuda" else 2**26
    if free is not None:
        copy = min(copy, free // 32)
    return 1 << round(math.log2(max(16, min(4096, copy / 4 / vocabulary))))
