"""Positions and lengths that depend on the whole batch, so that a piece depends on its neighbours.

LongRoPE uses other frequencies for all positions of a batch if one of them is beyond the model's
original length. The reference is a piece on its own, so pieces on either side of that length run in
separate passes.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdcore.data.batch import Packing
from kdcore.models.logit_transforms import allclose

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


def looks_at_call(
    run: Callable[[Tensor, Tensor, None], Tensor], trunk: nn.Module, config: Any, ids: Tensor
) -> tuple[int | None, bool]:
    """See `switch_of`: reads a row of ids [2, n] next to one with ever larger positions."""
    time = ids.shape[1]
    reach = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(reach, int):
        return None, True
    places = torch.arange(time, device=ids.device)

    def probe(length: int) -> list[Tensor]:
        with watched(trunk, len(ids)) as seen:
            states = run(ids, torch.stack([places, places + length - time]), None)
        return [*seen, states[0]]

    def alike(some: list[Tensor], others: list[Tensor]) -> bool:
        return all(map(torch.equal, some[:-1], others[:-1])) and allclose(some[-1], others[-1])

    return switch_of(probe, alike, time, reach)


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


def summed(runs: list[list[Tensor]]) -> list[Tensor]:
    """The states [rows * time, H] of calls for different pieces, each 0 elsewhere."""
    sums = runs[0] if len(runs) == 1 else [torch.stack(r).sum(0) for r in zip(*runs, strict=True)]
    return [each.flatten(0, 1) for each in sums]


def joined_alone(
    run: Callable[[Tensor, Tensor, None], list[Tensor]],
    input_ids: Tensor,
    position_ids: Tensor,
    packing: Packing,
) -> list[Tensor]:
    """The states [rows * time, H] of pieces, each in a call of its own; 0 on padding."""
    ids, places = input_ids.reshape(-1), position_ids.reshape(-1)
    joined: list[Tensor] = []
    for each in each_alone(packing):
        at = torch.arange(len(ids), device=ids.device) if each.real is None else each.real
        found = run(ids[at][None], places[at][None], None)
        joined = joined or [states.new_zeros(len(ids), states.shape[-1]) for states in found]
        pairs = zip(joined, found, strict=True)
        joined = [whole.index_copy(0, at, states[0]) for whole, states in pairs]
    assert joined
    return joined


_SWITCHES = re.compile(r"floor|topk|compress|block_size")
_SHORT = 8  # the length of pieces that are proved at loading


class UnprovedLengths:
    """The numbers of tokens in a config at which attention may change, until they are proved.

    Llama 4 scales queries from the `floor_scale`-th token of a row on; sparse attention chooses
    among keys where there are more than `index_topk`.
    """

    def __init__(self, config: Any | None) -> None:
        found = () if config is None else _lengths_in(config.get_text_config().to_dict(), "")
        self._left = {(length, of) for length in found for of in ("batch", "piece")}

    def due(self, tokens: int, packing: Packing | None) -> int:
        """The number of longest pieces that exceed what this batch exceeds; 0: nothing new."""
        if not self._left or packing is None:
            return 0
        reached = {"batch": tokens, "piece": packing.longest}
        due = {each for each in self._left if each[0] < reached[each[1]]}
        self._left -= due
        return max(2, max(due)[0] // packing.longest + 1) if due else 0


def _lengths_in(value: Any, name: str) -> Iterator[int]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _lengths_in(each, f"{name}.{key}")
    elif isinstance(value, int) and value > _SHORT and _SWITCHES.search(name):
        yield value


def evenly(ids: Tensor, length: int) -> Packing:
    """The packing of ids [1, n] as pieces of one length."""
    starts = torch.arange(0, ids.numel() + 1, length, dtype=torch.int32, device=ids.device)
    return Packing(None, (length,) * (ids.numel() // length), starts, length)


def _some(packing: Packing, lengths: np.ndarray, chosen: np.ndarray) -> Packing:
    device = packing.starts.device
    places = torch.from_numpy(np.flatnonzero(chosen.repeat(lengths))).to(device)
    kept: list[int] = lengths[chosen].tolist()
    starts = torch.tensor([0, *accumulate(kept)], dtype=torch.int32, device=device)
    real = places if packing.real is None else packing.real[places]
    return Packing(real, tuple(kept), starts, max(kept))
