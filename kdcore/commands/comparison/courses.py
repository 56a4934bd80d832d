"""A run's measurements over time, read at the number of tokens or seconds of another run."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kdcore.checksums import damage
from kdcore.commands.comparison.groups import RunSummary, summarize_run
from kdcore.document_losses import DOCUMENTS, DocumentLosses, read_document_losses
from kdcore.errors import UsageError
from kdcore.runs.environment import recorded
from kdcore.runs.folder import FINAL
from kdcore.runs.reading.facts import read_settings
from kdcore.runs.reading.metrics import Line, iter_metrics

Axis = Literal["tokens", "time"]
Half = Literal["first", "second"]
Clock = Literal["elapsed", "cpu_seconds"]
_HALVES: dict[Half, Callable[[int], slice]] = {
    "first": lambda documents: slice(0, documents // 2),
    "second": lambda documents: slice(documents // 2, None),
}
_SAME = 1e-3  # relative distance within which an evaluation counts as exact


@dataclass(frozen=True)
class Reading:
    """A metric at a point of a run: from an evaluation, or interpolated between two."""

    value: float
    tokens: float
    seconds: float  # by the run's clock
    steps: tuple[int, ...]  # of the evaluations used
    share: float  # weight of the second one


class Course:
    """One run: its settings, and its evaluations, of half the held-out documents if asked."""

    def __init__(self, folder: Path, half: Half | None = None) -> None:
        self.half = half
        self.clock: Clock = "elapsed"  # what equal time counts
        self.evaluations: list[Line] = []
        self.summary: RunSummary = summarize_run(folder, self._reading(folder))
        self.folder = folder

    def _reading(self, folder: Path) -> Iterator[Line]:
        for line in iter_metrics(folder):
            if any(key.startswith("eval/") for key in line):
                self.evaluations.append(line)
            yield line

    @cached_property
    def tokenizer(self) -> object:
        """A hash of the tokenizer; None if the folder does not have it."""
        return (recorded(self.folder / "fingerprints.json") or {}).get("tokenizer")

    @cached_property
    def device(self) -> str | None:
        """The hardware, as far as it affects speed; None if the folder does not have it."""
        found: dict[str, Any] | None = recorded(self.folder / "env.json")
        if found is None:
            return None
        if found.get("devices"):
            return ", ".join(str(each.get("name")) for each in found["devices"])
        processor = found.get("processor", {})
        return f"{processor.get('name')}, threads: {processor.get('threads')}"

    @property
    def counts_cpu_seconds(self) -> bool:
        """Whether it ran without a GPU, and each evaluation has its CPU seconds."""
        found: dict[str, Any] | None = recorded(self.folder / "env.json")
        without_gpu = found is not None and not found.get("devices")
        return without_gpu and all("cpu_seconds" in line for line in self.evaluations)

    @property
    def begun_with(self) -> str | None:
        """The name of the run whose final weights it started from; None if there is none."""
        model = read_settings(self.folder).get("student", {}).get("model")
        if not isinstance(model, str) or Path(model).name != FINAL:
            return None
        return Path(model).parent.name

    @property
    def lowers_its_rate(self) -> bool:
        """Whether its learning rate falls until the end."""
        train = read_settings(self.folder).get("train", {})
        return not str(train.get("schedule", "cosine")).startswith("constant")

    def metrics(self) -> list[str]:
        """The names of all numbers from its evaluations, such as "eval/nll"."""
        found = {k: None for e in self.evaluations for k, v in e.items() if _is_score(k, v)}
        return list(found)

    def key(self, axis: Axis) -> str:
        """The key of an axis in metrics.jsonl."""
        return "tokens" if axis == "tokens" else self.clock

    def _points(self, metric: str, axis: Axis) -> list[tuple[float, Line]]:
        key, found = self.key(axis), list[tuple[float, Line]]()
        for line in self.evaluations:
            at = line.get(key)
            if isinstance(at, int | float) and metric in line:
                found.append((float(at), line))
        return found

    def end(self, metric: str, axis: Axis) -> float | None:
        """Tokens or seconds at its last evaluation; None if there is none."""
        points = self._points(metric, axis)
        return points[-1][0] if points else None

    def at(self, metric: str, axis: Axis, limit: float) -> Reading | None:
        """The metric there, linearly interpolated between evaluations; None before the first.

        Raises UsageError for a half if there are no results of documents.
        """
        found = self._at(metric, axis, limit)
        if found is None or self.half is None:
            return found
        kept = self.documents(found)
        sums = None if kept is None else nats_and_sizes(kept, metric)
        if sums is None or not len(sums[1]):
            raise UsageError(
                f"{self.folder} has no {metric} of each document: --documents compares eval/nll "
                "and eval/bits_per_byte"
            )
        return replace(found, value=float(sums[0].sum() / sums[1].sum()))

    def _at(self, metric: str, axis: Axis, limit: float) -> Reading | None:
        points = self._points(metric, axis)
        places = [at for at, _ in points]
        after = bisect_left(places, limit * (1 - _SAME))
        if after < len(points) and places[after] <= limit * (1 + _SAME):
            while after + 1 < len(points) and places[after + 1] <= limit * (1 + _SAME):
                after += 1
            return self._between(points[after][1], points[after][1], metric, 0.0)
        if after == len(points):
            if not points:
                return None
            return self._between(points[-1][1], points[-1][1], metric, 0.0)
        if not after:
            return None
        share = (limit - places[after - 1]) / (places[after] - places[after - 1])
        return self._between(points[after - 1][1], points[after][1], metric, share)

    def _between(self, one: Line, other: Line, metric: str, share: float) -> Reading:
        def number(key: str) -> float:
            first, last = (_number(line.get(key)) for line in (one, other))
            return first if not share else first * (1 - share) + last * share

        lines = (one, other) if share else (one,)
        steps = tuple(int(_number(line["step"])) for line in lines)
        return Reading(number(metric), number("tokens"), number(self.clock), steps, share)

    def documents(self, reading: Reading) -> DocumentLosses | None:
        """The per-document results there, of the half; None if an evaluation kept none."""
        if problem := damage(self.folder / DOCUMENTS):
            raise UsageError(f"{problem}, so its documents are not what the run measured")
        found = [self._read(step) for step in reading.steps]
        first, last = found[0], found[-1]
        if first is None or last is None or first.rows != last.rows:
            return None
        nll = first.nll * (1 - reading.share) + last.nll * reading.share
        whole = DocumentLosses(first.document, nll, first.tokens, first.bytes, first.rows)
        return whole if self.half is None else whole.part(_HALVES[self.half](len(whole)))

    def _read(self, step: int) -> DocumentLosses | None:
        return read_document_losses(self.folder, step)


def _is_score(key: str, value: object) -> bool:
    return key.startswith("eval/") and isinstance(value, int | float) and math.isfinite(value)


def share_clock(courses: Sequence[Course]) -> None:
    """Count CPU seconds where all runs have them: other work on the machine hardly changes them."""
    clock: Clock = "cpu_seconds" if all(one.counts_cpu_seconds for one in courses) else "elapsed"
    for one in courses:
        one.clock = clock


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def shares_rows(courses: Sequence[Course]) -> bool | None:
    """The seed of the held-out rows, if shared; None if all rows are used."""
    drawn = {course.summary.rows_drawn_by for course in courses}
    return None if drawn == {None} else len(drawn) == 1


def nats_and_sizes(losses: DocumentLosses, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    """For each document: the metric's sum, and its divisor."""
    if metric == "eval/nll":
        return losses.nll.astype(float), losses.tokens.astype(float)
    if metric == "eval/bits_per_byte":
        return losses.nll.astype(float) / math.log(2), losses.bytes.astype(float)
    return None
