"""Progress bars for longer operations, one line each at the bottom of the terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Timer
from typing import TYPE_CHECKING

from kdcore.terminal import formatting

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from kdcore.terminal.display import Shown

_PATIENCE = 1.0  # seconds before a bar appears
_LEAST = 12  # fewest columns of a useful bar
Clock = Callable[[], float]


@contextmanager
def progress(label: str, total: float | None = None, unit: str = "") -> Iterator[Bar]:
    """Show progress in this block if it takes more than a second.

    Call the bar's `advance` with the amount done, of `total` if known, in `unit` ("rows"; "B" for
    bytes). Shows nothing if standard error is not a terminal, or with `-q`.
    """
    bar = Bar(label, total, unit)
    if not _is_watched():
        yield bar
        return
    shown: list[Shown] = []
    timer = Timer(_PATIENCE, lambda: shown.append(_show(bar)))
    timer.daemon = True
    timer.start()
    try:
        yield bar
    finally:
        timer.cancel()
        timer.join()  # it may be showing the bar right now
        for each in shown:
            each.close()


def _is_watched() -> bool:
    # Its own level: messages of other libraries have no bearing on bars.
    if not sys.stderr.isatty() or logging.getLogger("kdcore").level > logging.INFO:
        return False
    from rich.console import Console

    from kdcore.terminal.display import is_watched

    return is_watched(Console(stderr=True))


def _show(bar: Bar) -> Shown:
    from kdcore.terminal.display import show_live

    return show_live(bar)


@dataclass(eq=False)
class Bar:
    """The amount done, the total, and the remaining time."""

    label: str
    total: float | None = None
    unit: str = ""
    done: float = 0.0
    clock: Clock = time.monotonic
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def advance(self, more: float) -> None:
        """Add to the amount done."""
        self.done += more

    def remaining(self) -> float | None:
        """Remaining seconds at the current pace; None if unknown."""
        if not self.total or not self.done:
            return None
        taken = self.clock() - self.began
        return max(0.0, taken * (self.total - self.done) / self.done)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        said = "  ".join(self._numbers(options.max_width))
        left = options.max_width - len(said) - 2
        label = Text(self.label)
        label.truncate(max(min(left - (_LEAST if self.total else 0), left), 1), overflow="ellipsis")
        grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        bar = left - label.cell_len - 2
        if self.total and bar >= 4:
            shown = ProgressBar(self.total, self.done, bar, complete_style="cyan")
            grid.add_row(label, shown, Text(said, no_wrap=True))
        else:
            grid.add_row(label, Text(said, no_wrap=True))
        yield grid

    def _numbers(self, width: int) -> list[str]:
        """Share, amount in its unit, and time, as far as there is room."""
        share = [formatting.percent(min(self.done / self.total, 1.0))] if self.total else []
        said = self._said() if width >= 72 else ""
        shown = [*(share if width >= 40 else []), said, self._time()]
        return [text for text in shown if text]

    def _said(self) -> str:
        """The amount done, in its unit."""
        if not self.unit or not (self.done or self.total):
            return ""
        shown = formatting.size if self.unit == "B" else formatting.count
        unit = "" if self.unit == "B" else f" {self.unit}"
        of = f" of {shown(self.total)}" if self.total else ""
        return f"{shown(self.done)}{of}{unit}"

    def _time(self) -> str:
        left = self.remaining()
        if left is not None:
            return f"{formatting.duration(left)} left"
        return formatting.duration(self.clock() - self.began)
