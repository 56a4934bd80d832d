"""The three matrix products of a language model's head, unrounded whatever the weights are.

Results are float32, and float64 where the weights are. Half weights on a CUDA device are multiplied
on tensor cores and come out in float32, never rounded to half. A CPU has no such product, and
without half-precision units a very slow one; there the weight is upcast block by block instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_BLOCK = 16_384  # rows of the weight upcast at a time
_HALF = (torch.bfloat16, torch.float16)


def unrounded(tensor: Tensor) -> Tensor:
    """The same numbers in float32, or in float64 where they are."""
    return tensor.to(unrounded_type(tensor.dtype))


def unrounded_type(dtype: torch.dtype) -> torch.dtype:
    """Float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def outside_autocast(device: str) -> AbstractContextManager[None]:
    """Types are as they are written until the block ends. Free where nothing is cast anyway."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def logits_of(
    states: Tensor, weight: Tensor, bias: Tensor | None = None, buffer: Tensor | None = None
) -> Tensor:
    """States [n, H], weight [V, H] and bias [V] -> logits [n, V], in `buffer` [n or more, V]."""
    out = None if buffer is None else buffer[: len(states)]
    with outside_autocast(states.device.type):
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


def states_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the logits [n, V] and weight [V, H] -> gradient of the states [n, H]."""
    if weight.dtype not in _HALF:
        return gradient @ weight
    if weight.is_cuda:
        return torch.mm(gradient.to(weight.dtype), weight, out_dtype=torch.float32)
    total = gradient.new_zeros(gradient.shape[0], weight.shape[1])
    for rows in _blocks(weight):
        total.addmm_(gradient[:, rows], weight[rows].float())
    return total


def add_weight_gradient(total: Tensor, gradient: Tensor, states: Tensor) -> None:
    """Add a chunk's share to `total` [V, H]: gradient [n, V]^T times states [n, H]."""
    if states.is_cuda and states.dtype in _HALF:
        half = gradient.to(states.dtype)
        torch.addmm(total, half.t(), states, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(gradient.t(), states.to(total.dtype))


def _blocks(weight: Tensor) -> Iterator[slice]:
    return (slice(at, at + _BLOCK) for at in range(0, weight.shape[0], _BLOCK))
