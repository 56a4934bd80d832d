"""The data of a report, read from run folders."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from kdcore.commands.comparison.arms import Arm
from kdcore.commands.comparison.courses import Axis, Course
from kdcore.commands.comparison.tables import with_deviation
from kdcore.commands.reporting.charts import Line, Point
from kdcore.runs.environment import recorded
from kdcore.runs.reading.facts import facts_of_folder
from kdcore.runs.reading.history import Series
from kdcore.terminal.formatting import duration, percent, value

_ANSWERS = 3  # per arm


@dataclass(frozen=True)
class ArmFacts:
    """An arm's settings and runs."""

    label: str
    style: int
    facts: Sequence[tuple[str, str]]
    runs: Sequence[Mapping[str, Any]]  # seed, folder, state, and the last value of each metric


def facts_of(arm: Arm, style: int) -> ArmFacts:
    """Student, teacher, objective, selection and batch; and each run with its last scores."""
    first = next(iter(arm.runs.values()))
    runs = [
        {"seed": seed, "run": course.folder.name, "state": _state(course), "scores": last(course)}
        for seed, course in arm.runs.items()
    ]
    return ArmFacts(arm.label, style, facts_of_folder(first.folder).rows(), runs)


def _state(course: Course) -> str:
    at = course.summary.unfinished_at
    return "finished" if at is None else f"{'failed ' * course.summary.has_failed}at step {at}"


def last(course: Course) -> dict[str, float]:
    """The last value of each score in metrics.jsonl."""
    return {f"eval/{name}": each for name, each in course.summary.scores.items()}


def evaluations(arm: Arm, style: int, metric: str, axis: Axis) -> Line:
    """A score over tokens or time, where all seeds were evaluated."""
    key = next(iter(arm.runs.values())).key(axis)
    found = [
        {int(str(line["step"])): (line.get(key), line.get(metric)) for line in each.evaluations}
        for each in arm.runs.values()
    ]
    shared = [step for step in found[0] if all(step in each for each in found)]
    points = (_point([each[step] for each in found]) for step in sorted(shared))
    return Line(arm.label, style, [point for point in points if point is not None])


def _point(pairs: Sequence[tuple[object, object]]) -> Point | None:
    numbers = [(x, y) for x, y in pairs if _is_number(x) and _is_number(y)]
    if len(numbers) < len(pairs):
        return None
    xs, ys = ([float(str(pair[n])) for pair in numbers] for n in (0, 1))
    return Point(fmean(xs), fmean(ys), min(ys), max(ys))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def series(arm: Arm, style: int, name: str, label: str = "") -> Line:
    """A thinned training curve over steps, with the range over seeds."""
    each = [course.summary.curves.get(name) for course in arm.runs.values()]
    known = [one for one in each if one is not None]
    if len(known) < len(each):
        return Line(label or arm.label, style, [])
    return Line(label or arm.label, style, list(_together(known)))


def _together(each: Sequence[Series]) -> Iterator[Point]:
    courses = [dict(one.means()) for one in each]
    for step in courses[0]:
        found = _point([(step, course.get(step)) for course in courses])
        if found is not None:
            yield found


def names_under(arm: Arm, prefix: str) -> list[str]:
    """The curves of an arm under a prefix such as "gradient/"."""
    curves = next(iter(arm.runs.values())).summary.curves
    return [name for name in curves if name.startswith(prefix)]


# Cost


def cost(arms: Sequence[Arm], price: float | None) -> list[dict[str, str]]:
    """For each arm: device, speed, seconds per run, total hours, and their price."""
    return [_cost(arm, price) for arm in arms]


def _cost(arm: Arm, price: float | None) -> dict[str, str]:
    courses = list(arm.runs.values())
    seconds = [course.summary.history.latest.get("elapsed", math.nan) for course in courses]
    speeds = [
        course.summary.history.latest.get("tokens_per_second", math.nan) for course in courses
    ]
    devices = sum(
        _processes(course.folder) * each for course, each in zip(courses, seconds, strict=True)
    )
    found = {
        "arm": arm.label,
        "device": "; ".join(dict.fromkeys(course.device or "not known" for course in courses)),
        "tokens/s": with_deviation(speeds),
        "time of a run": duration(fmean(seconds)),
        "device hours of all": value(devices / 3600),
    }
    return found | ({} if price is None else {"cost": value(price * devices / 3600)})


def _processes(folder: Path) -> int:
    """The number of devices: one per process."""
    variables = (recorded(folder / "env.json") or {}).get("variables", {})
    said = str(variables.get("WORLD_SIZE", "1"))
    return int(said) if said.isdigit() and int(said) else 1


# Texts


def answers(arm: Arm) -> list[dict[str, str]]:
    """The latest completions of the first run: prompt and text."""
    first = next(iter(arm.runs.values()))
    lines = list(_lines(first.folder / "rollouts.jsonl"))
    newest = max((line["step"] for line in lines), default=0)
    return [
        {"step": str(line["step"]), "source": str(line.get("source", "")), **_texts(line)}
        for line in lines
        if line["step"] == newest
    ][:_ANSWERS]


def _texts(line: Mapping[str, Any]) -> dict[str, str]:
    return {"prompt": str(line.get("prompt", "")), "text": str(line.get("text", ""))}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:  # a torn line
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                yield line


def samples(arms: Sequence[Arm]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Texts from evaluations, of the first run of each arm, with the arm's label."""
    texts = [next(iter(arm.runs.values())).summary.history.texts for arm in arms]
    names = dict.fromkeys(name for own in texts for name in own)
    return [
        (
            name,
            [(a.label, each[name]) for a, each in zip(arms, texts, strict=True) if name in each],
        )
        for name in names
    ]


def differing_rows(arms: Sequence[Arm], keys: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Settings in which the arms' recipes differ."""
    settings = [next(iter(arm.runs.values())).summary.settings for arm in arms]
    return [(key, [str(each.get(key, "-")) for each in settings]) for key in keys]


def selection_rows(arms: Sequence[Arm]) -> list[tuple[str, list[str]]]:
    """The last share kept and, for rankings, the last threshold and mean scores."""
    shown: dict[str, tuple[str, Callable[[float], str]]] = {
        "kept": ("share kept", percent),
        "selection/threshold": ("threshold", value),
        "selection/excess_kept": ("mean score of the kept", value),
        "selection/excess_dropped": ("mean score of the dropped", value),
    }
    return [
        (title, [_mean_of(arm, key, form) for arm in arms]) for key, (title, form) in shown.items()
    ]


def _mean_of(arm: Arm, key: str, form: Callable[[float], str]) -> str:
    histories = [course.summary.history for course in arm.runs.values()]
    found = [
        each.series[key].now if key in each.series else each.latest.get(key, math.nan)
        for each in histories
    ]
    known = [each for each in found if math.isfinite(each)]
    return form(fmean(known)) if known else "-"
