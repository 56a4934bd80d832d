"""Matrix products of the LM head, in chunks, with float32 results.

float64 weights give float64 results. On CUDA, half-precision weights use tensor cores with float32
output, so logits are never rounded to half. CPUs have no such product, and a very slow one without
half-precision units; there the weight is upcast block by block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcore.data.batch import Batch, LogitsFn

_BLOCK = 16_384  # rows of the weight that are upcast at a time
_IN_CACHE = 2**20  # float32 numbers that fit a core's cache
_HALF = (torch.bfloat16, torch.float16)


def upcast(tensor: Tensor) -> Tensor:
    """The tensor in float32; float64 stays float64."""
    return tensor.to(accumulation_dtype(tensor.dtype))


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype for sums and products: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def no_autocast(device: str) -> AbstractContextManager[None]:
    """Disables autocast in a block. Free where it is off already."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def logits_of(
    states: Tensor, weight: Tensor, bias: Tensor | None = None, buffer: Tensor | None = None
) -> Tensor:
    """States [n, H], weight [V, H], bias [V] -> logits [n, V], in `buffer` [>= n, V] if given."""
    out = None if buffer is None else buffer[: len(states)]
    with no_autocast(states.device.type):
        logits = _product(states, weight, out)
        return logits if bias is None else logits.add_(bias)


def _product(states: Tensor, weight: Tensor, out: Tensor | None) -> Tensor:
    if weight.dtype not in _HALF:
        return torch.mm(states.to(weight.dtype), weight.t(), out=out)
    if weight.is_cuda:  # half operands, but sums and results are float32
        return torch.mm(states.to(weight.dtype), weight.t(), out_dtype=torch.float32)
    states = states.float()
    logits = states.new_empty(states.shape[0], weight.shape[0]) if out is None else out
    for rows in _blocks(weight):
        logits[:, rows] = states @ weight[rows].float().t()
    return logits


class LogitsGradient:
    """G = dL/dlogits [n, V] of a chunk, for the two products of the head's backward.

    Half products on a GPU take G in the dtype of `operand`, cast once for both. float16 cannot
    represent values near 1e-8, the size of gradients divided by the tokens of a step: there G is
    multiplied by `scale` first, and the caller divides both results by it.
    """

    def __init__(self, gradient: Tensor, operand: torch.dtype, scale: Tensor | None = None) -> None:
        self._in_half = gradient.is_cuda and operand in _HALF
        self._gradient = _in_type(gradient, operand, scale) if self._in_half else gradient

    def to_states(self, weight: Tensor) -> Tensor:
        """G W [n, H], for a weight W [V, H]: the gradient in the states."""
        if self._in_half:
            return torch.mm(self._gradient, weight, out_dtype=torch.float32)
        if weight.dtype not in _HALF:
            return self._gradient @ weight
        total = self._gradient.new_zeros(self._gradient.shape[0], weight.shape[1])
        for rows in _blocks(weight):
            total.addmm_(self._gradient[:, rows], weight[rows].float())
        return total

    def add_to_weight(self, total: Tensor, states: Tensor) -> None:
        """Adds G^T S, for states S [n, H], to the gradient in the weight [V, H]."""
        if self._in_half:
            torch.addmm(total, self._gradient.t(), states, out_dtype=torch.float32, out=total)
        else:
            total.addmm_(self._gradient.t(), states.to(total.dtype))


def _in_type(gradient: Tensor, dtype: torch.dtype, scale: Tensor | None) -> Tensor:
    if scale is None:
        return gradient.to(dtype)
    return torch.mul(gradient, scale, out=torch.empty_like(gradient, dtype=dtype))


# float16 overflows at 65,504, and the tail of a flat distribution must stay above its smallest
# normal number, 6e-5: a scaled maximum near 2^8 leaves room on both sides.
_HEADROOM = 2**8


def float16_scale(weights: Tensor, operand: torch.dtype) -> Tensor | None:
    """The factor of a gradient before its cast to float16: a power of two, on the device.

    `weights` [terms, n] bound the gradient of common losses: that of cross-entropy is the weight
    times (q - one-hot). None where nothing is cast to float16.
    """
    if not weights.is_cuda or operand != torch.float16 or not weights.numel():
        return None
    largest = weights.abs().amax().clamp(min=2.0**-64)
    # largest = mantissa * 2^e, so mantissa / largest = 2^-e: scaling changes no mantissa bits.
    mantissa, _ = torch.frexp(largest)
    return _HEADROOM * mantissa / largest


def _blocks(weight: Tensor) -> Iterator[slice]:
    return (slice(at, at + _BLOCK) for at in range(0, weight.shape[0], _BLOCK))


def nll_from_logits(logits_at: LogitsFn, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
    """Negative log-likelihoods from logits, computed one chunk of positions at a time."""
    device = batch.labels.device
    size = chunk_size(batch.vocabulary, device)
    if device.type == "cpu":
        size *= 2  # no second copy of the logits, and larger products are faster

    def shared(logits: Tensor) -> Tensor:
        return upcast(logits[:, : batch.vocabulary])

    def nll(positions: Tensor, labels: Tensor) -> Tensor:
        pieces = zip(torch.split(positions, size), torch.split(labels, size), strict=True)
        return torch.cat([nll_of(shared(logits_at(some)), label) for some, label in pieces])

    return torch.no_grad()(nll)


def nll_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits [n, V], labels [n] -> negative log-likelihoods [n].

    On a CPU a few rows at a time, so that their probabilities stay in its cache: bit-identical and
    twice as fast.
    """
    on_cpu = logits.device.type == "cpu"
    rows = max(1, _IN_CACHE // logits.shape[-1] if on_cpu else len(logits))
    pieces = zip(torch.split(logits, rows), torch.split(labels, rows), strict=True)
    return torch.cat([F.cross_entropy(some, label, reduction="none") for some, label in pieces])


def chunk_size(vocabulary: int, device: torch.device, free: int | None = None) -> int:
    """The number of tokens in a chunk: a power of two, which suits matrix products.

    One float32 copy of a chunk's logits takes about 64 MB, on a GPU 512 MB, and at most 1/32 of
    `free` bytes, as losses need several copies.
    """
    copy = 2**29 if device.type == "cuda" else 2**26
    if free is not None:
        copy = min(copy, free // 32)
    return 1 << round(math.log2(max(16, min(4096, copy / 4 / vocabulary))))
