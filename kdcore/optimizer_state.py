"""An optimizer's state as tensors and plain values by name, which need no pickle to be kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

_INSIDE = "/"  # between a name and what lies inside: bitsandbytes has tables in its tables


def flat(state: Mapping[int, Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, each with memory of its own, and everything else."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    held = set[int]()
    for index, entries in state.items():
        for name, value in _leaves(entries, f"{index}."):
            if isinstance(value, Tensor):
                place = value.untyped_storage().data_ptr()
                tensors[name] = value.clone() if place in held else value
                held.add(place)
            else:
                values[name] = value
    return tensors, values


def nested(entries: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The state whose tensors and values these are."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in entries.items():
        index, _, name = key.partition(".")
        *tables, last = name.split(_INSIDE)
        table = state.setdefault(int(index), {})
        for inside in tables:
            table = table.setdefault(inside, {})
        table[last] = value
    return state


def _leaves(table: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{name}{_INSIDE}")
        else:
            yield before + name, value
