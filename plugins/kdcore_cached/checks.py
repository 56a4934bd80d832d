"""A small checksum per token, written before the mark that says the token is stored.

It detects flipped bits and pages that never reached the disk: values that do not match count as
missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from kdcore_cached.kinds import Array

CHECK = Array("check.u16", np.dtype(np.uint16))


def check_of_extra(array: Array) -> Array:
    """The checksums of an extra file; 0 where an earlier version wrote."""
    return Array(f"{array.file}.{CHECK.file}", CHECK.dtype)


_ODD, _STEP, _NOTHING = (np.uint64(each) for each in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 1))


def checks_of(slots: np.ndarray, values: Iterable[np.ndarray]) -> np.ndarray:
    """A checksum of slot number and values of the arrays at some slots, uint16 [n], never 0."""
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
    """Bytes [n, width] as 8-byte words, zero-padded, uint64 [n] each."""
    wide = -(-rows.shape[1] // 8) * 8
    padded = np.zeros((len(rows), wide), np.uint8)
    padded[:, : rows.shape[1]] = rows
    return np.ascontiguousarray(padded.view(np.uint64).T)
