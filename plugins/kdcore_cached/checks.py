"""A small hash of what a store holds of each token, written before the mark that says it is there.

A bit that flips on the disk, a page that never reached it: what does not fit its hash is missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from kdcore_cached.kinds import Array

CHECK = Array("check.u16", np.dtype(np.uint16))


def check_beside(array: Array) -> Array:
    """The hashes of a file that was laid beside a store; 0 where an earlier version wrote."""
    return Array(f"{array.file}.{CHECK.file}", CHECK.dtype)


_ODD, _STEP, _NOTHING = (np.uint64(each) for each in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 1))


def checks_of(slots: np.ndarray, values: Iterable[np.ndarray]) -> np.ndarray:
    """A hash of what the arrays hold of some slots, uint16 [n], never 0. Other slots, others."""
    total = slots.astype(np.uint64) * _STEP
    for array in values:
        flat = np.ascontiguousarray(array).reshape(len(slots), math.prod(array.shape[1:]))
        rows = flat.view(np.uint8)
        for word in _words(rows):
            total = (total ^ word) * _ODD
            total ^= total >> np.uint64(29)
    found: np.ndarray = np.maximum(total >> np.uint64(48), _NOTHING).astype(np.uint16)
    return found


def _words(rows: np.ndarray) -> Iterable[np.ndarray]:
    """Bytes [n, width] in words of eight, filled up with zeros, uint64 [n] each."""
    wide = -(-rows.shape[1] // 8) * 8
    padded = np.zeros((len(rows), wide), np.uint8)
    padded[:, : rows.shape[1]] = rows
    return np.ascontiguousarray(padded.view(np.uint64).T)
