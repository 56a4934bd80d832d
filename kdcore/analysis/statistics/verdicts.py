"""Verdicts on a difference: better, worse, no difference above the margin, or undecided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kdcore.analysis.statistics.differences import FEWEST_SEEDS, LEVEL, Difference

Verdict = Literal["better", "worse", "no difference above the margin", "undecided"]
_WORDS = ("no seed", "one seed", "two seeds")


@dataclass(frozen=True)
class Judgement:
    """A verdict with its reason; None with too few seeds for one."""

    verdict: Verdict | None
    reason: str


def judge(
    differences: Sequence[Difference], margins: Sequence[float], *, lower_is_better: bool
) -> list[Judgement]:
    """Judge several comparisons with one baseline, each with its margin in the metric's unit.

    A family of comparisons has at most a 5 % chance of a false difference (Holm), and of a false
    "no difference above the margin" (Bonferroni: each interval at 1 - 0.05 / comparisons).
    """
    able = [n for n, each in enumerate(differences) if each.seeds >= FEWEST_SEEDS]
    differing = {able[n] for n in holm([differences[n] for n in able])}
    return [
        _judged(each, margin, n in differing, len(able), lower_is_better)
        for n, (each, margin) in enumerate(zip(differences, margins, strict=True))
    ]


def holm(differences: Sequence[Difference]) -> list[int]:
    """The indices of significant differences, by Holm's step-down procedure (1979).

    The clearest is tested at 0.05 / m, the next at 0.05 / (m - 1), until one is not significant.
    """
    order = sorted(range(len(differences)), key=lambda n: _clearness(differences[n]), reverse=True)
    found = list[int]()
    for rank, at in enumerate(order):
        if not _leaves_out_zero(differences[at], len(order) - rank):
            break
        found.append(at)
    return found


def _clearness(found: Difference) -> float:
    low, high = found.interval()
    half = (high - low) / 2
    return abs(found.mean) / half if half else float("inf")


def _interval(found: Difference, comparisons: int) -> tuple[float, float]:
    return found.interval(1 - (1 - LEVEL) / max(1, comparisons))


def _leaves_out_zero(found: Difference, comparisons: int) -> bool:
    low, high = _interval(found, comparisons)
    return low > 0 or high < 0


def _inside(found: Difference, margin: float, comparisons: int) -> bool:
    return max(map(abs, _interval(found, comparisons))) <= margin


def _judged(
    found: Difference, margin: float, differs: bool, comparisons: int, lower: bool
) -> Judgement:
    if found.seeds < FEWEST_SEEDS:
        said = f"{_WORDS[found.seeds]} in common: a verdict needs {FEWEST_SEEDS}"
        return Judgement(None, said)
    if _inside(found, margin, comparisons):
        more = ", though 0 is not in it" if differs else ""
        said = f"the whole interval lies inside the margin{more}"
        return Judgement("no difference above the margin", said)
    if differs:
        said = f"the interval excludes 0; {found.source} count"
        return Judgement("better" if (found.mean < 0) == lower else "worse", said)
    return Judgement("undecided", _why_open(found, margin, comparisons))


def _why_open(found: Difference, margin: float, comparisons: int) -> str:
    """Why the comparison is undecided."""
    after = f"but not after the correction for {comparisons} comparisons"
    if _leaves_out_zero(found, 1):
        return f"the interval excludes 0, {after}"
    if _inside(found, margin, 1):
        return f"the interval lies inside the margin, {after}"
    return "the interval contains 0 and reaches beyond the margin; more seeds narrow it"
