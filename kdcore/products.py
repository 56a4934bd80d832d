"""The three matrix products of a language model's head, in float32 whatever the weights are.

Half-precision weights on a CUDA device are multiplied on tensor cores and come out in float32,
never rounded to half. A CPU without half-precision units emulates such products very slowly; there the
weight is upcast block by block instead.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_BLOCK = 16384  # rows of the weight upcast at a time


def _blocks(weight: Tensor) -> Iterator[slice]:
    return (slice(at, at + _BLOCK) for at in range(0, weight.shape[0], _BLOCK))


def logits_of(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """States [n, H] and weight [V, H] -> float32 logits [n, V]."""
    if weight.dtype == torch.float32:
        logits = states.float() @ weight.t()
    elif weight.is_cuda:
        logits = torch.mm(states.to(weight.dtype), weight.t(), out_dtype=torch.float32)
    else:
        states = states.float()
        logits = states.new_empty(states.shape[0], weight.shape[0])
        for rows in _blocks(weight):
            torch.mm(states, weight[rows].float().t(), out=logits[:, rows])
    return logits if bias is None else logits.add_(bias)


def states_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the logits [n, V] and weight [V, H] -> float32 gradient of the states [n, H]."""
    if weight.dtype == torch.float32:
        return gradient @ weight
    if weight.is_cuda:
        return torch.mm(gradient.to(weight.dtype), weight, out_dtype=torch.float32)
    total = gradient.new_zeros(gradient.shape[0], weight.shape[1])
    for rows in _blocks(weight):
        total.addmm_(gradient[:, rows], weight[rows].float())
    return total


def add_weight_gradient(total: Tensor, gradient: Tensor, states: Tensor) -> None:
    """Add a chunk's share to the float32 `total` [V, H]: gradient [n, V]^T times states [n, H]."""
    if states.is_cuda and states.dtype != torch.float32:
        half = gradient.to(states.dtype)
        torch.addmm(total, half.t(), states, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(gradient.t(), states.float())
