"""Collectives: gather and sum over processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator


Gather = Callable[[Tensor], tuple[Tensor, int]]
"""This process's values [n] -> everybody's [N], and where this process's begin among them."""

Total = Callable[[Tensor], Tensor]
"""A scalar of this process -> its sum over all processes, on the device."""


def alone(values: Tensor) -> tuple[Tensor, int]:
    """The gathering of a single process."""
    return values, 0


def over(accelerator: Accelerator) -> Gather:
    """The gathering of an accelerator's processes, each of which may bring another number."""
    if accelerator.num_processes == 1:
        return alone

    def gather(values: Tensor) -> tuple[Tensor, int]:
        mine = torch.tensor([len(values)], device=values.device)
        counts: list[int] = accelerator.gather(mine).tolist()
        padded = values.new_zeros(max(counts))
        padded[: len(values)] = values
        rows = accelerator.gather(padded).view(len(counts), -1)
        everyone = torch.cat([row[:n] for row, n in zip(rows, counts, strict=True)])
        return everyone, sum(counts[: accelerator.process_index])

    return gather


def total_of(accelerator: Accelerator) -> Total:
    """The sum over an accelerator's processes."""
    if accelerator.num_processes == 1:
        return lambda value: value
    return lambda value: accelerator.reduce(value, "sum")
