"""Arms of an experiment: runs that differ only in the seed form one arm."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdcore.commands.comparison.courses import Course, Half, share_clock
from kdcore.commands.comparison.group_tables import labels
from kdcore.commands.comparison.groups import Group, RunSummary
from kdcore.errors import UsageError, did_you_mean

SWEEP = "sweep.json"  # in the folder of runs: which run is which point of a sweep
_SEED = re.compile(r"(stage\.[^.]+\.)?seed")
_Entry = Mapping[str, object]
_Varied = dict[str, str]  # values by key; a control has no key


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


def arms_of(folders: Sequence[Path], half: Half | None = None) -> list[Arm]:
    """The arms, in the order of their first runs. Raises UsageError for duplicate seeds."""
    courses = [Course(folder, half) for folder in dict.fromkeys(folders)]
    share_clock(courses)
    points = {folder: _points(folder) for folder in {course.folder.parent for course in courses}}
    groups: dict[str, list[Course]] = {}
    swept: dict[str, _Varied] = {}
    for course in courses:
        point = points[course.folder.parent].get(course.folder.name)
        identity = [course.summary.name, list(point.items()) if point else course.summary.settings]
        key = json.dumps(identity, sort_keys=True, default=str)
        groups.setdefault(key, []).append(course)
        if point:
            swept[key] = point
    others = [group for key, group in groups.items() if key not in swept]
    named = iter(labels([Group([_finished(each) for each in group]) for group in others]))
    shared = _shared([*swept.values()]) if len(groups) == len(swept) > 1 else frozenset()
    said = [_said(swept[key], shared) if key in swept else next(named) for key in groups]
    return [
        _arm(_unique(label, said, runs), runs, _said(swept.get(key, {})))
        for label, (key, runs) in zip(said, groups.items(), strict=True)
    ]


def _unique(label: str, all_labels: Sequence[str], runs: Sequence[Course]) -> str:
    """With the runs' name in front if other arms have the same label."""
    name = runs[0].summary.name
    return label if label and all_labels.count(label) == 1 else f"{name} {label}".rstrip()


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


def _finished(course: Course) -> RunSummary:
    """Labels arms by their content, whatever folder their runs are in."""
    return replace(course.summary, unfinished_at=None)


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


def _points(out: Path) -> dict[str, _Varied]:
    """What each run of sweeps in a folder of runs varies; nothing where nothing is varied."""
    try:
        entries = json.loads((out / SWEEP).read_text("utf-8"))["points"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    known = [entry for entry in entries if _is_entry(entry)] if isinstance(entries, list) else []
    values: dict[str, set[str]] = {}
    for entry in known:
        values.setdefault(_control(entry), set()).add(json.dumps(_values(entry)))
    found: dict[str, _Varied] = {}
    for entry in known:
        control = _control(entry)
        # A control shared by several points is labelled once: it lacks what they vary.
        shared = control and len(values[control]) == 1
        said = {} if shared else _values(entry)
        found[Path(str(entry.get("run"))).name] = said | ({"": control} if control else {})
    return found


def _is_entry(entry: object) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("sets", {}), Mapping)


def _control(entry: _Entry) -> str:
    return str(entry.get("control") or "")


def _values(entry: _Entry) -> dict[str, str]:
    """The varied values of a point except the seed, without the name of its own stage."""
    sets, own = entry.get("sets", {}), f"stage.{entry.get('stage')}."
    assert isinstance(sets, Mapping)
    varied = {key: each for key, each in sets.items() if not _SEED.fullmatch(key)}
    return {key.removeprefix(own): str(each) for key, each in varied.items()}


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
