"""Runs grouped by everything except the seed, with mean, spread and differing settings."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from kdcore.recipe.merge import identity_fields
from kdcore.runs.folder import failure_of
from kdcore.runs.reading.facts import flat, read_settings
from kdcore.runs.reading.history import History, Series
from kdcore.runs.reading.metrics import Line, iter_metrics

Settings = Mapping[str, object]
"""A recipe's values by dotted key: "train.lr", "loss.2.use"."""

_NOT_COMPARED = ("seed", "extends", "train.eval_first")


@dataclass(frozen=True)
class RunSummary:
    """One run, as its folder describes it."""

    folder: Path
    name: str  # without the identity: "quickstart.kd"
    seed: object
    settings: Settings  # without the seed and keys that cannot change the result
    scores: Mapping[str, float]  # the last value of each evaluation
    unfinished_at: int | None  # the step; None if finished
    rows_drawn_by: object = None  # the seed of the held-out rows; None if all are used
    is_old: bool = False  # started before these rows had a seed of their own
    failure: str | None = None  # why its last attempt ended early
    history: History = field(default_factory=History, repr=False, compare=False)

    @property
    def has_failed(self) -> bool:
        """Whether its last attempt ended with an error; an interruption is none."""
        return self.failure is not None and not self.failure.startswith("interrupted")

    @property
    def curves(self) -> Mapping[str, Series]:
        """All its measurements, by the keys of metrics.jsonl."""
        return self.history.series


def summarize_run(folder: Path, lines: Iterable[Line] | None = None) -> RunSummary:
    """Read a run's folder; `lines` if its metrics.jsonl was read already."""
    table = read_settings(folder)
    history = History(iter_metrics(folder) if lines is None else lines)
    scores = {curve.name.removeprefix("eval/"): curve.now for curve in history.group("eval/")}
    train = table.get("train", {})
    old = "eval_seed" not in train
    drawn_by = table.get("seed", 0) if old else train["eval_seed"]
    return RunSummary(
        rows_drawn_by=None if train.get("eval_rows") == "all" else drawn_by,
        is_old=old,
        folder=folder,
        name=str(table.get("name") or folder.name.rpartition("-")[0]),
        seed=table.get("seed", 0),
        settings=settings_of(table, folder.parent),
        scores=scores,
        history=history,
        unfinished_at=None if (folder / "final").is_dir() else history.step,
        failure=failure_of(folder),
    )


def settings_of(table: Mapping[str, Any], out: Path = Path()) -> Settings:
    """Everything that a result depends on, except the seed, by dotted key.

    `out` is the folder of the run's folder: other runs are there too if all were moved.
    """
    counts = flat(identity_fields(table))
    return {key: _referred(value, out) for key, value in counts if key not in _NOT_COMPARED}


def _referred(value: object, out: Path) -> object:
    """A value; another run's final weights become that run's settings, without its seed."""
    if not isinstance(value, str) or Path(value).name != "final":
        return value
    written = Path(value).parent
    for folder in (written, out / written.name):
        if table := read_settings(folder):
            whole = json.dumps(settings_of(table, folder.parent), sort_keys=True, default=str)
            return f"{table.get('name')} {hashlib.sha256(whole.encode()).hexdigest()[:4]}"
    return value


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed."""

    runs: Sequence[RunSummary]

    @property
    def name(self) -> str:
        """The run name, and the progress of an unfinished one."""
        first = self.runs[0]
        stopped = first.unfinished_at
        if stopped is None:
            return first.name
        return (
            f"{first.name} ({'failed' if first.failure and not stopped else f'at step {stopped}'})"
        )

    @property
    def settings(self) -> Settings:
        """The shared settings."""
        return self.runs[0].settings

    def values(self, score: str) -> list[float]:
        """A score of every run; NaN if missing."""
        return [run.scores.get(score, math.nan) for run in self.runs]

    def mean(self, score: str) -> float:
        """The mean over runs: NaN if one has no value, so that no run is left out silently."""
        return fmean(self.values(score))

    def spread(self, score: str) -> float | None:
        """The sample standard deviation; None for a single run."""
        values = self.values(score)
        if len(values) < 2:
            return None
        return stdev(values) if all(map(math.isfinite, values)) else math.nan


def grouped(runs: Sequence[RunSummary]) -> list[Group]:
    """Groups in the order of their first run."""
    groups: dict[str, list[RunSummary]] = {}
    for run in runs:
        identity = [run.name, run.settings, run.unfinished_at]
        groups.setdefault(json.dumps(identity, sort_keys=True, default=str), []).append(run)
    return [Group(runs) for runs in groups.values()]


def scores_of(groups: Sequence[Group]) -> list[str]:
    """The evaluations' names: loss and bits per byte first."""
    names = dict.fromkeys(name for group in groups for run in group.runs for name in run.scores)
    first = [name for name in ("nll", "bits_per_byte") if name in names]
    return [*first, *(name for name in names if name not in first)]


def differing(groups: Sequence[Group]) -> list[str]:
    """The keys in which the groups differ.

    Options that some groups lack are left out if their table's `use` differs, as that implies them.
    """
    settings = [group.settings for group in groups]
    keys = [
        key
        for key in dict.fromkeys(key for each in settings for key in each)
        if len({repr(each.get(key)) for each in settings}) > 1
    ]
    return [key for key in keys if not _explained(key, keys, settings)]


def _explained(key: str, keys: Sequence[str], settings: Sequence[Settings]) -> bool:
    if all(key in each for each in settings):
        return False
    parents = [key[: n + 1] for n, letter in enumerate(key) if letter == "."]
    return any(f"{parent}use" in keys and f"{parent}use" != key for parent in parents)
