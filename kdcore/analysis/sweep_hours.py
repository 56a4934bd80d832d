"""The device hours of a whole sweep, predicted: each distinct run once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdcore.analysis.hours import predicted
from kdcore.analysis.plan import plans_of
from kdcore.recipe.sweep import label_of
from kdcore.sweeps.graph import tasks_of

if TYPE_CHECKING:
    from kdcore.sweeps.points import Point


@dataclass(frozen=True)
class SweepHours:
    """The predicted seconds of all runs of a sweep, of which `unknown` are not counted."""

    points: int
    runs: int
    unknown: int
    seconds: float


def hours_of_sweep(points: Sequence[Point]) -> SweepHours:
    """Points that differ only in seeds take equally long, and are predicted once.

    A control that waits for its point counts as long as the point.
    """
    known: dict[str, dict[str, float]] = {}
    each: list[float | None] = []
    for task in tasks_of(points).values():
        point = task.point
        if (key := _without_seeds(point)) not in known:
            known[key] = _seconds(point)
        each.append(known[key].get(task.stage))
    found = [seconds for seconds in each if seconds is not None]
    return SweepHours(len(points), len(each), len(each) - len(found), sum(found))


def _without_seeds(point: Point) -> str:
    kept = {key: v for key, v in point.values.items() if key.rpartition(".")[2] != "seed"}
    return label_of(kept, point.control)


def _seconds(point: Point) -> dict[str, float]:
    """By stage, where it can be predicted."""
    found = {plan.stage.name: predicted(plan) for plan in plans_of(point.recipe)}
    return {name: hours.seconds for name, hours in found.items() if hours is not None}
