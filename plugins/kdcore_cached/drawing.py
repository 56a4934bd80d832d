"""Sampling that depends only on a seed and the token's place in the text, not on the batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIXING = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)


def drawn(
    logits: Tensor, seed: int, document: np.ndarray, offset: np.ndarray, draws: int
) -> Tensor:
    """Ids [n, draws], each row sampled from its softmax(logits) [n, V] by inverse transform."""
    # float32 cumulative sums over 150,000 ids would have errors larger than a rare id's
    # probability.
    sums = logits.double().softmax(-1).cumsum(-1)
    at = torch.from_numpy(uniform(seed, document, offset, draws)).to(logits.device)
    ids = torch.searchsorted(sums, at * sums[:, -1:], right=True)
    return ids.clamp(max=logits.shape[1] - 1)


def uniform(seed: int, document: np.ndarray, offset: np.ndarray, draws: int) -> np.ndarray:
    """Numbers in [0, 1) [n, draws]: SplitMix64, seeded by seed, document and offset."""
    state: np.ndarray = np.full(len(document), seed, np.uint64)
    for key in (document, offset):
        state = _mixed(state + _STEP) ^ key.astype(np.uint64)
    steps = np.arange(1, draws + 1, dtype=np.uint64) * _STEP
    bits: np.ndarray = _mixed(_mixed(state + _STEP)[:, None] + steps)
    # The upper 53 bits fill the mantissa of a float64.
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(state: np.ndarray) -> np.ndarray:
    """SplitMix64's output function: every input bit affects every output bit."""
    for shift, factor in _MIXING:
        state = (state ^ (state >> shift)) * factor
    mixed: np.ndarray = state ^ (state >> np.uint64(31))
    return mixed
