"""The mass of the ids that are not stored, at temperatures other than 1.

The stored value is the log of their share of softmax(logits / T), as float16. The logarithm keeps
its digits where the share is small, and also where it is close to 1, as it is then close to 0. 0
itself is reserved for empty slots, so no share is stored as 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdcore import Loss, Stage
from kdcore_cached.kinds import Array

ENOUGH = 0.1  # of the mass: with less, the loss is mostly about the bucket of all others
TOKENS = 2000  # sampled to estimate the mass of the stored ids
_CLOSEST = -(2.0**-24)  # the float16 closest to 0 from below
_NAME, _END = "others_at_", ".f16"


def temperatures_of(recipe: Stage) -> list[float]:
    """The temperatures other than 1 at which a recipe's losses read its teacher, sorted."""
    losses = [one for one in recipe.components() if isinstance(one, Loss) and one.needs_teacher]
    found = {float(at) for loss in losses for at in loss.temperatures()}
    return sorted(found - {1.0})


def others_array(temperature: float) -> Array:
    """The file of a temperature."""
    return Array(f"{_NAME}{temperature!r}{_END}", np.dtype(np.float16))


def temperatures_in(folder: Path) -> list[float]:
    """The temperatures that a store has files for."""
    names = (path.name for path in folder.glob(f"{_NAME}*{_END}"))
    return sorted(float(name[len(_NAME) : -len(_END)]) for name in names)


def log_share_of_others(logs: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Logits [n, V], known ids [n, k] -> the log-share of the others, as stored [n]."""
    tempered = logs / temperature
    whole = tempered.logsumexp(-1)
    others = tempered.scatter_(1, ids, -torch.inf).logsumexp(-1)
    return (others - whole).clamp(max=_CLOSEST).half()


def logit_of_others(known: Tensor, share: Tensor, temperature: float) -> Tensor:
    """Log-probabilities at temperature 1 [n, k], stored log-share [n] -> the others' logit [n].

    Dividing it, and the known ids' logits, by the temperature gives the others their share.
    """
    log = share.to(known.dtype)
    # The log-odds of the others against the known ids; -expm1(log) is the known ids' share.
    odds = log - (-torch.expm1(log)).log()
    return temperature * ((known / temperature).logsumexp(-1) + odds)


def ids_that_hold(share: float, p: Tensor) -> int:
    """Distributions [n, V] -> how many of the likeliest ids hold this share, on average."""
    each = 64
    while True:
        each = min(4 * each, p.shape[1])
        sums = p.topk(each).values.cumsum(-1).mean(0)
        if sums[-1] >= share or each == p.shape[1]:
            return 1 + int((sums < share).sum())


def mass_of_known(shares: np.ndarray) -> float:
    """Stored log-shares [n] -> the mean mass of the known ids."""
    return float(-np.expm1(shares.astype(np.float32)).mean())


def too_little(k: int, masses: Mapping[float, float], wanted: Mapping[float, int]) -> Iterable[str]:
    """The warning for temperatures at which k ids have too little mass."""
    for at, mass in masses.items():
        if mass < ENOUGH:
            more = f"k = {wanted[at]} would hold a tenth" if at in wanted else "a larger k has more"
            yield (
                f"the {k} stored ids hold {mass:.1%} of the teacher's mass at temperature {at:g}: "
                f"most of what is learned there is the mass of all others together; {more}"
            )


def first_filled(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """The first filled slots, at most as many as are sampled."""
    found = np.zeros(0, np.float16)
    for start in range(0, len(values), 1 << 18):
        some = np.asarray(values[start : start + (1 << 18)])
        found = np.append(found, some[some != 0])[:TOKENS]
        if len(found) == TOKENS:
            break
    return found
