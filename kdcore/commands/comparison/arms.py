"""Arms of an experiment: runs that differ only in the seed form one arm."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdcore.commands.comparison.courses import Course, Half, share_clock
from kdcore.commands.comparison.group_tables import in_one_line, labels, telling
from kdcore.commands.comparison.groups import Group, RunSummary, Settings, settings_of
from kdcore.errors import UsageError, did_you_mean
from kdcore.recipe.sweep import MEASURED
from kdcore.runs.reading.facts import read_settings

_log = logging.getLogger("kdcore")

SWEEP = "sweep.json"  # in the folder of runs: which run is which point of a sweep
_SEED = re.compile(r"(stage\.[^.]+\.)?seed")
_Entry = Mapping[str, object]
_Varied = dict[str, str]  # values by key; a control has no key


@dataclass(frozen=True)
class _Point:
    """What a sweep varied in a run."""

    values: _Varied
    measured_on: Settings | None = None  # of a control: the settings of the measured run


@dataclass(frozen=True, eq=False)
class Arm:
    """Runs by seed."""

    label: str
    runs: Mapping[object, Course]
    whole: str = ""  # its label with the values that all compared arms share

    @property
    def unfinished(self) -> list[str]:
        """Each unfinished run, and its progress."""
        summaries = [course.summary for course in self.runs.values()]
        return [
            f"{run.folder.name} {'failed' if run.has_failed else 'is'} at step {run.unfinished_at}"
            for run in summaries
            if run.unfinished_at is not None
        ]


class _Alike:
    """Runs of one arm while arms are collected."""

    def __init__(self) -> None:
        self.courses: list[Course] = []
        self.points: list[_Varied] = []  # that name it
        self._summaries: list[RunSummary] = []

    def add(self, course: Course, settings: Settings, points: Sequence[_Point]) -> None:
        self.courses.append(course)
        self.points += [each.values for each in points if each.values]
        self._summaries.append(replace(course.summary, settings=settings, unfinished_at=None))

    @property
    def group(self) -> Group:
        """Labels the arm, whatever folder its runs are in."""
        return Group(self._summaries)


def arms_of(folders: Sequence[Path], half: Half | None = None) -> list[Arm]:
    """The arms, in the order of their first runs. Raises UsageError for duplicate seeds."""
    courses = [Course(folder, half) for folder in dict.fromkeys(folders)]
    share_clock(courses)
    known = {folder: _points(folder) for folder in {course.folder.parent for course in courses}}
    groups: dict[str, _Alike] = {}
    for course in courses:
        found = known[course.folder.parent].get(course.folder.name, [])
        settings = _settings(course.summary, found)
        key = json.dumps([course.summary.name, settings], sort_keys=True, default=str)
        groups.setdefault(key, _Alike()).add(course, settings, found)
    swept = _chosen_points({key: arm.points for key, arm in groups.items() if arm.points})
    named = iter(labels([arm.group for key, arm in groups.items() if key not in swept]))
    shared = _shared([*swept.values()]) if len(groups) == len(swept) > 1 else frozenset()
    said = [_said(swept[key], shared) if key in swept else next(named) for key in groups]
    distinct = _distinct(said, [arm.group for arm in groups.values()])
    return [
        _arm(label, arm.courses, _said(swept.get(key, {})))
        for label, (key, arm) in zip(distinct, groups.items(), strict=True)
    ]


def _settings(run: RunSummary, points: Sequence[_Point]) -> Settings:
    """The settings that runs of one arm share.

    A control's measured value differs between seeds: what it was measured on stands for it.
    """
    measured = [each.measured_on for each in points if each.measured_on is not None]
    return measured[-1] if measured else run.settings


def _chosen_points(points: Mapping[str, Sequence[_Varied]]) -> dict[str, _Varied]:
    """The point that names each arm: its runs may belong to several sweeps.

    That of most of its runs; of equally many, the one that varies what other arms vary.
    """
    keys = Counter(tuple(each) for arm in points.values() for each in arm)
    chosen = dict[str, _Varied]()
    for key, arm in points.items():
        runs = Counter(json.dumps(each) for each in arm)
        best = max(runs, key=lambda text: (runs[text], keys[tuple(json.loads(text))]))
        chosen[key] = json.loads(best)
    return chosen


def _distinct(said: Sequence[str], arms: Sequence[Group]) -> list[str]:
    """Labels that tell the arms apart.

    Equal ones get the runs' name in front, and settings behind if a recipe was edited meanwhile.
    """
    distinct = [*said]
    for label in dict.fromkeys(said):
        same = [n for n, each in enumerate(said) if each == label]
        if len(same) == 1 and label:
            continue
        names = [arms[n].name for n in same]
        settings = telling([arms[n] for n in same])
        for n, name, differ in zip(same, names, settings, strict=True):
            front = [name] if len(set(names)) > 1 or not label else []
            behind = [f"{key}={value}" for key, value in differ.items()]
            distinct[n] = " ".join([*front, label, *behind]).strip()
    return distinct


def _shared(points: Sequence[_Varied]) -> frozenset[tuple[str, str]]:
    """The values that all points have, apart from controls that lack what varies."""
    values = [frozenset(point.items()) for point in points if any(point)]
    return frozenset.intersection(*values) if values else frozenset()


def _said(point: _Varied, shared: frozenset[tuple[str, str]] = frozenset()) -> str:
    """A point's values in words, without those that all have."""
    return " ".join(
        f"{key}={each}" if key else each
        for key, each in point.items()
        if (key, each) not in shared or not key
    )


def _arm(label: str, courses: Sequence[Course], whole: str) -> Arm:
    runs: dict[object, Course] = {}
    for course in courses:
        seed = course.summary.seed
        if seed in runs:
            both = f"{runs[seed].folder} and {course.folder}"
            raise UsageError(
                f"{both} both have seed {seed} and differ in nothing else, or only in the seed of "
                "an earlier stage: runs are paired by their own seed, so leave one out"
            )
        runs[seed] = course
    return Arm(label, runs, whole)


def _points(out: Path) -> dict[str, list[_Point]]:
    """What each run of sweeps in a folder of runs varies; nothing where nothing is varied."""
    known = _entries(out / SWEEP)
    values: dict[str, set[str]] = {}
    for entry in known:
        values.setdefault(_control(entry), set()).add(json.dumps(_values(entry)))
    found: dict[str, list[_Point]] = {}
    for entry in known:
        control = _control(entry)
        # A control shared by several points is labelled once: it lacks what they vary.
        shared = control and len(values[control]) == 1
        said = {} if shared else _values(entry)
        point = _Point(said | ({"": control} if control else {}), _measured_on(entry, out))
        found.setdefault(Path(str(entry.get("run"))).name, []).append(point)
    return found


def _entries(path: Path) -> list[_Entry]:
    try:
        entries = json.loads(path.read_text("utf-8"))["points"]
        return [entry for entry in list(entries) if _is_entry(entry)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):
        _log.warning("%s is damaged: arms are named by their settings", path)
        return []


def _measured_on(entry: _Entry, out: Path) -> Settings | None:
    control, twin = _control(entry), entry.get("twin")
    if control not in MEASURED or ("twin" in entry and twin is None):
        return None
    table = read_settings(out / str(twin)) if twin else {}
    return {"control": control, **(settings_of(table, out) if table else _values(entry))}


def _is_entry(entry: object) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("sets", {}), Mapping)


def _control(entry: _Entry) -> str:
    return str(entry.get("control") or "")


def _values(entry: _Entry) -> dict[str, str]:
    """The varied values of a point except the seed, without the name of its own stage."""
    sets, own = entry.get("sets", {}), f"stage.{entry.get('stage')}."
    assert isinstance(sets, Mapping)
    varied = {key: each for key, each in sets.items() if not _SEED.fullmatch(key)}
    return {key.removeprefix(own): in_one_line(each) for key, each in varied.items()}


def chosen(arms: Sequence[Arm], baseline: str | None) -> Arm:
    """The baseline arm: by its label or one of its runs; by default the first.

    Raises UsageError unless exactly one arm matches.
    """
    if baseline is None:
        return arms[0]
    exact = [arm for arm in arms if baseline in (arm.label, arm.whole, *_names(arm))]
    found = exact or [arm for arm in arms if any(baseline in name for name in _all_names(arm))]
    if len(found) == 1:
        return found[0]
    there = ", ".join(repr(arm.label) for arm in found or arms)
    which = "fits several arms" if found else "is not an arm"
    near = "" if found else did_you_mean(baseline, [arm.label for arm in arms])
    raise UsageError(f"--baseline {baseline!r} {which}{near}: there are {there}")


def _names(arm: Arm) -> list[str]:
    runs = [course.summary for course in arm.runs.values()]
    return [*(run.folder.name for run in runs), *(str(run.folder) for run in runs)]


def _all_names(arm: Arm) -> list[str]:
    return [arm.label, arm.whole, *(course.summary.name for course in arm.runs.values())]
