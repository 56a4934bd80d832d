"""The best step so far, by the score that the recipe names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kdcore.errors import RunError, did_you_mean

if TYPE_CHECKING:
    from kdcore.api.train_options import TrainOptions


PREFIX = "eval/"  # prefix of scores in the log


@dataclass(frozen=True)
class Best:
    """A step and its score."""

    step: int
    score: float


def score_of(options: TrainOptions, scores: Mapping[str, float | str]) -> float:
    """The score among the evals' results by which the recipe chooses its best step."""
    name = str(options.keep_best)
    scores = {f"{PREFIX}{key}": each for key, each in scores.items()}
    found = scores.get(name, scores.get(PREFIX + name))
    if isinstance(found, str):
        raise RunError(f"[train] keep_best = {name!r}: that is text, not a number")
    if found is None:
        there = ", ".join(key for key, each in scores.items() if not isinstance(each, str))
        raise RunError(
            f"[train] keep_best = {name!r}: no eval of this recipe measures it"
            f"{did_you_mean(name, scores)}; they measure {there or 'nothing'}"
        )
    return found


def is_better(score: float, best: Best | None, mode: Literal["max", "min"] | None) -> bool:
    """Whether a score beats the best so far. Ties keep the earlier one; NaN never wins."""
    if math.isnan(score):
        return False
    return best is None or (score > best.score if mode == "max" else score < best.score)


def best_in_words(options: TrainOptions, best: Best) -> str:
    """The best step's score in words: "lowest eval/nll, 2.31"."""
    which = "highest" if options.mode == "max" else "lowest"
    return f"{which} {options.keep_best}, {best.score:.6g}"
