"""The measurements of a run, for the panel: bounded memory for any length of run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kdcore.runs.reading.metrics import is_part
from kdcore.terminal.formatting import plain

POINTS = 256  # exceeds any terminal's width
_FALLING = re.compile(
    r"(^|[/_.-])(loss|nll|ce|kl|jsd|tvd|perplexity|ppl|bits|error|mse|rmse|mae|wer|cer|brier"
    r"|distance|divergence)($|[/_.-])"
)
_BLOCKS = "▁▂▃▄▅▆▇█"
_STEEP = 3.0  # ratio of highest to lowest value above which a curve is drawn logarithmically


def lower_is_better(name: str) -> bool:
    """Whether a score of this name is better when lower; guessed from its words."""
    return _FALLING.search(name) is not None or name.startswith("loss")


@dataclass
class Point:
    """The mean of some consecutive values."""

    step: int  # of the last value
    sum: float
    count: int

    def take(self, step: int, value: float) -> None:
        """Add one value."""
        self.step, self.sum, self.count = step, self.sum + value, self.count + 1

    def joined(self, later: Point) -> Point:
        """The mean of two points."""
        return Point(later.step, self.sum + later.sum, self.count + later.count)


@dataclass
class Series:
    """One curve: exact first, best and last values; the others are thinned to a few points."""

    name: str
    first: float = math.nan
    now: float = math.nan
    best: float = math.nan
    best_step: int = 0
    points: list[Point] = field(default_factory=list)
    _stride: int = 1  # values in a full point
    falls: bool = field(init=False)  # whether lower is better

    def __post_init__(self) -> None:
        self.falls = lower_is_better(self.name)

    def add(self, step: int, value: float) -> None:
        """Add the value at a step."""
        if not self.points:
            self.first = value
        self.now = value
        if self.points and self.points[-1].count < self._stride:
            self.points[-1].take(step, value)
        else:
            self._begin(Point(step, value, 1))
        beats = value < self.best if self.falls else value > self.best
        if (beats or math.isnan(self.best)) and math.isfinite(value):
            self.best, self.best_step = value, step

    def _begin(self, point: Point) -> None:
        self.points.append(point)
        if len(self.points) > POINTS:
            self.points = _halved(self.points)
            self._stride *= 2

    def course(self, width: int, until: int) -> list[str]:
        """The curve from the first step to `until`, one character for each of `width` equal spans.

        Spans without a value are empty.
        """
        spans: list[list[float]] = [[] for _ in range(width)]
        means = self.means()
        for step, value in means:
            place = math.ceil(step * width / max(until, 1)) - 1
            spans[min(max(0, place), width - 1)].append(value)
        finite = [value for _, value in means if math.isfinite(value)]
        low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
        shown = _log if low > 0 and high > _STEEP * low else float
        low, high = shown(low), shown(high)
        return [_block(shown(sum(v) / len(v)), low, high) if v else "" for v in spans]

    def means(self) -> list[tuple[int, float]]:
        """Steps and values of the thinned curve."""
        return [(point.step, point.sum / point.count) for point in list(self.points)]


def _halved(points: list[Point]) -> list[Point]:
    joined = [one.joined(next_) for one, next_ in zip(points[0::2], points[1::2], strict=False)]
    return joined + points[len(joined) * 2 :]


def _log(value: float) -> float:
    """Logarithms, so that changes after a steep start remain visible."""
    return math.log(value) if value > 0 else math.nan


def _block(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return "!"
    share = (value - low) / (high - low) if high > low else 0.0
    return _BLOCKS[min(int(share * len(_BLOCKS)), len(_BLOCKS) - 1)]


class History:
    """Lines of metrics.jsonl, added one by one, as curves, latest numbers and texts.

    One thread may read while another adds: readers iterate over copies.
    """

    def __init__(self, lines: Iterable[Mapping[str, object]] = ()) -> None:
        self.series: dict[str, Series] = {}
        self.latest: dict[str, float] = {}  # lr, kept, tokens, tokens_per_second, elapsed
        self.texts: dict[str, str] = {}
        self.step = 0
        self.records = 0
        self.version = 0  # changes with every line
        for line in lines:
            self.add(line)

    def add(self, line: Mapping[str, object]) -> None:
        """Add one line; null is a non-finite value."""
        step = line.get("step")
        self.step = max(self.step, step if isinstance(step, int) else 0)
        self.records += "loss" in line
        self.version += 1
        old = "loss" in line and "schema" not in line
        for key, value in line.items():
            if key == "loss" or "/" in key:
                # In older runs these values include the weight: a different curve.
                self._take(f"weighted {key}" if old and key.startswith("loss/") else key, value)
            elif isinstance(value, int | float):
                self.latest[key] = value

    def _take(self, key: str, value: object) -> None:
        known = self.series.get(key)
        if known is not None and type(value) is float:  # nearly always
            known.add(self.step, value)
        elif isinstance(value, str):
            self.texts[key.removeprefix("eval/")] = plain(value)
        elif value is None or isinstance(value, int | float):
            curve = self.series.setdefault(key, Series(key))
            curve.add(self.step, math.nan if value is None else float(value))

    def group(self, prefix: str) -> list[Series]:
        """The curves under a prefix such as "eval/", in the order of their first value."""
        return [curve for key, curve in list(self.series.items()) if key.startswith(prefix)]

    def scores(self, *, parts: bool) -> list[Series]:
        """The curves of evaluations, optionally without scores that are parts of another one."""
        curves = self.group("eval/")
        names = {curve.name for curve in curves}
        return [curve for curve in curves if parts or not is_part(curve.name, names)]
