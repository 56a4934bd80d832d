"""Progress of a sweep: a live table on a terminal, otherwise a line per change."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from kdcore.runs.reading.history import History, Series
from kdcore.runs.reading.metrics import METRICS, iter_metrics
from kdcore.sweeps.coordinator import Progress
from kdcore.terminal import formatting
from kdcore.terminal.display import Shown, is_watched, show_live

_STYLES: Mapping[str, str] = {"done": "green", "failed": "bold red", "running": "cyan"}
_ROWS = 30  # most tasks listed
_ORDER = ("running", "failed", "queued", "waiting", "blocked", "done")
_REASON = 90  # characters


class Scores:
    """The main score of run folders, reloaded when the file changes."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[int, Series | None]] = {}

    def of(self, folder: Path | None) -> Series | None:
        """The curve of the first score, `eval/nll` if there is one."""
        path = folder / METRICS if folder is not None else None
        if folder is None or path is None or not path.is_file():
            return None
        changed = path.stat().st_mtime_ns
        if self._known.get(folder, (0, None))[0] != changed:
            scores = History(iter_metrics(folder)).scores(parts=False)
            main = [each for each in scores if each.name == "eval/nll"] or scores
            self._known[folder] = changed, next(iter(main), None)
        return self._known[folder][1]


class SweepTable:
    """The state of every task, updated by the coordinator through `show`."""

    def __init__(self) -> None:
        self._progress: Sequence[Progress] = ()
        self._said: dict[str, tuple[str, str]] = {}
        self._scores = Scores()
        self._shown: Shown | None = None

    def show(self, progress: Sequence[Progress]) -> None:
        """Show a new state: live on a terminal, else only changes."""
        self._progress = progress
        if is_watched(Console(stderr=True)):
            self._shown = self._shown or show_live(self)
            return
        for each in progress:
            now = (each.phase, each.reason)
            if self._said.get(each.task.key, ("waiting", "")) != now:
                self._said[each.task.key] = now
                print(self._line(each), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the last state on the terminal."""
        if self._shown is not None:
            self._shown.close()
            Console(stderr=True).print(self)
            self._shown = None

    def _line(self, each: Progress) -> str:
        reason = f": {formatting.plain(each.reason)}" if each.reason else ""
        return f"{each.task.name}  {each.phase}{self._score(each)}{reason}"

    def _score(self, each: Progress) -> str:
        found = self._scores.of(each.folder) if each.phase in ("running", "done") else None
        if found is None or not math.isfinite(found.best):
            return ""
        return f"  {found.name.removeprefix('eval/')} {found.best:.4g}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
        table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="ellipsis", no_wrap=True)
        ranked = sorted(self._progress, key=lambda each: _ORDER.index(each.phase))
        for each in ranked[:_ROWS]:
            phase = Text(each.phase, _STYLES.get(each.phase, "dim"))
            reason = formatting.shortened(formatting.plain(each.reason), _REASON)
            table.add_row(each.task.name, phase, self._score(each).strip(), Text(reason, "dim"))
        yield table
        yield Text(self._foot(len(ranked) - _ROWS), "dim")

    def _foot(self, more: int) -> str:
        counts = Counter[str](each.phase for each in self._progress)
        said = [f"{counts[phase]} {phase}" for phase in _ORDER if counts[phase]]
        hidden = [f"{more} of them not shown"] if more > 0 else []
        return ", ".join([*said, *hidden, *self._best()])

    def _best(self) -> list[str]:
        """The best run so far, among points of the sweep."""
        ends = [each for each in self._progress if each.task.stage == each.task.point.ends[-1]]
        found = [(each, self._scores.of(each.folder)) for each in ends]
        curves = [(each, curve) for each, curve in found if curve and math.isfinite(curve.best)]
        if not curves:
            return []
        first = curves[0][1]
        alike = [(each, curve) for each, curve in curves if curve.name == first.name]
        by = min if first.falls else max
        each, curve = by(alike, key=lambda pair: pair[1].best)
        name = curve.name.removeprefix("eval/")
        return [f"best {name} so far {curve.best:.4g} ({each.task.point.label})"]
