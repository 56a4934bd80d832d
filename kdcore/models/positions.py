"""Position embeddings that depend on the whole batch, so that a piece depends on its neighbours.

LongRoPE uses other frequencies for all positions of a batch if one of them is beyond the model's
original length. The reference is a piece on its own, so pieces on either side of that length run in
separate passes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdcore.data.batch import Packing

Probe = Callable[[int], list[Tensor]]
"""Runs a row next to one with positions below the given number; returns states of the first."""

Same = Callable[[list[Tensor], list[Tensor]], bool]


def switch_of(probe: Probe, same: Same, least: int, reach: int) -> tuple[int | None, bool]:
    """The longest batch in which positions are as in the shortest; None: any length.

    Also whether there is exactly one other mode beyond it; otherwise every length has its own
    positions. `probe` runs at lengths from `least` to `reach`.
    """
    alone = probe(least)

    def differs(length: int, other: list[Tensor] = alone) -> bool:
        probe(least)  # resets embeddings that remember a long batch
        return not same(probe(length), other)

    if reach <= least or not differs(reach):
        return None, True
    first = bisect_left(range(least + 1, reach), True, key=differs) + least + 1
    probe(least)
    beyond = probe(first)
    two = not differs(reach, beyond)
    probe(least)
    return first - 1, two


@contextmanager
def watched(trunk: nn.Module, rows: int) -> Iterator[list[Tensor]]:
    """Captures what the trunk's rotary embeddings return for the first rows, in a context.

    With fresh weights, states hardly depend on positions; these do.
    """
    seen: list[Tensor] = []

    def note(_: nn.Module, __: Any, given: Any) -> None:
        each = given if isinstance(given, tuple) else (given,)
        seen.extend(t[0] for t in each if isinstance(t, Tensor) and t.ndim and len(t) == rows)

    rotary = [each for each in trunk.modules() if "rotary" in type(each).__name__.lower()]
    hooks = [each.register_forward_hook(note) for each in rotary]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def apart(packing: Packing, switch: int) -> list[Packing]:
    """The pieces up to a length and those beyond it, each as a packing of its own."""
    lengths = np.array(packing.lengths)
    long = lengths > switch
    if long.all() or not long.any():
        return [packing]
    return [_some(packing, lengths, chosen) for chosen in (~long, long)]


def each_alone(packing: Packing) -> list[Packing]:
    """Every piece as a packing of its own."""
    lengths = np.array(packing.lengths)
    return [_some(packing, lengths, np.arange(len(lengths)) == n) for n in range(len(lengths))]


def _some(packing: Packing, lengths: np.ndarray, chosen: np.ndarray) -> Packing:
    device = packing.starts.device
    places = torch.from_numpy(np.flatnonzero(chosen.repeat(lengths))).to(device)
    kept: list[int] = lengths[chosen].tolist()
    starts = torch.tensor([0, *accumulate(kept)], dtype=torch.int32, device=device)
    real = places if packing.real is None else packing.real[places]
    return Packing(real, tuple(kept), starts, max(kept))
