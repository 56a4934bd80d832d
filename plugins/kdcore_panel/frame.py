"""The panel's picture of a run, drawn from plain values at any width from 40 columns up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from kdcore import Facts, History, Series, formatting, summary
from kdcore_panel.pace import Pace

WIDEST = 120
_BORDER = 4  # two characters on each side
_NARROWEST_CURVE = 8


@dataclass
class Frame:
    """Everything the panel shows; `now` is read from the caller's clock just before drawing."""

    facts: Facts
    history: History
    pace: Pace
    now: float = 0.0
    memory: float = 0.0
    _drawn: tuple[tuple[int, int, int], Segments] | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, WIDEST)
        inside = width - _BORDER
        upper = self._upper(console, options.update(width=inside, height=None))
        parts: list[RenderableType] = [upper, self._bar(), Text(), self._status(inside)]
        title = Text(self.facts.name, "bold")
        yield Panel(Group(*parts), title=title, title_align="left", border_style="dim", width=width)

    def _upper(self, console: Console, options: ConsoleOptions) -> Segments:
        """All but what moves with the clock: drawn anew only when a line came."""
        key = (self.history.version, options.max_width, console.height)
        if self._drawn is None or self._drawn[0] != key:
            width = options.max_width
            head, texts = self._head(width), self._texts(width)
            facts = sum(1 + text.count("\n") for _, text in self.facts.rows())
            taken = facts + len(texts) + 8 // _columns(width) + 8
            table = curves(self.history, width, max(console.height - taken, 3))
            middle: list[RenderableType] = [table, *texts, Text()] if table.row_count else texts
            lines = console.render_lines(Group(*head, *middle), options, new_lines=True)
            self._drawn = key, Segments([segment for line in lines for segment in line])
        return self._drawn[1]

    def _head(self, width: int) -> list[RenderableType]:
        facts = self.facts.rows()
        label_width = max([len(label) for label, _ in facts], default=0)
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True, min_width=label_width)
        grid.add_column(no_wrap=True, overflow="ellipsis", max_width=width - label_width - 2)
        for label, text in facts:
            grid.add_row(label, Text(text))
        return [grid, Text()] if facts else []

    def _texts(self, width: int) -> list[RenderableType]:
        """The latest texts that evaluations returned, at most three, a line each."""
        lines: list[RenderableType] = []
        for name, text in list(self.history.texts.items())[:3]:
            line = Text.assemble((f"{name}  ", "dim"), text)
            line.truncate(width, overflow="ellipsis")
            lines.append(line)
        return [Text(), *lines] if lines else []

    def _bar(self) -> Table:
        grid = Table.grid(padding=(0, 2), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True, justify="right")
        steps = self.pace.steps
        done = f"{self.pace.step:>{len(str(steps))},}/{steps:,}"
        bar = ProgressBar(
            max(steps, 1), self.pace.step, complete_style="cyan", style="bright_black"
        )
        grid.add_row(
            Text.assemble(("step ", "dim"), done), bar, formatting.percent(self.pace.share())
        )
        return grid

    def _status(self, width: int) -> Table:
        columns = _columns(width)
        grid = Table.grid(expand=True)
        for _ in range(columns):
            grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        cells = [Text.assemble((f"{label} ", "dim"), said) for label, said in self._values()]
        for start in range(0, len(cells), columns):
            grid.add_row(*cells[start : start + columns])
        return grid

    def _values(self) -> list[tuple[str, str]]:
        latest, pace = self.history.latest, self.pace
        batch, batches = pace.in_epoch()

        def last(key: str, shown: Callable[[float], str]) -> str:
            return shown(latest[key]) if key in latest else "-"

        values = {
            "epoch": f"{pace.epoch()}/{pace.epochs()}" if pace.per_epoch else "",
            "batch": f"{batch:,}/{batches:,}" if pace.per_epoch else "",
            "elapsed": formatting.duration(pace.elapsed(self.now)),
            "left": formatting.duration(pace.remaining(self.now)),
            "tokens/s": last("tokens_per_second", formatting.count),
            "memory": formatting.size(self.memory) if self.memory else "",
            "lr": last("lr", "{:.2e}".format),
            "kept": last("kept", formatting.percent) if self.facts.tokens else "",
        }
        return [(label, said) for label, said in values.items() if said]


def _columns(width: int) -> int:
    return 4 if width >= 68 else 2


def curves(history: History, width: int, room: int) -> Table:
    """A line for each curve: name, last and best value, and its course where there is room."""
    all_rows = summary.rows(history)
    shown = all_rows if len(all_rows) <= room else all_rows[: room - 1]
    names = max([len(label) for label, _ in shown], default=4)
    curve = width - names - 2 * 8 - 3 * 2
    until = max(history.step, 1)
    grid = _grid(with_best=curve >= -2, with_curve=curve >= _NARROWEST_CURVE)
    grid.show_header = bool(shown)
    for label, series in shown:
        best = (
            Text() if series.name.startswith("selection/") else summary.number(series.best, "dim")
        )
        line = _curve(series, min(curve, max(history.records, 1)), until)
        grid.add_row(*[Text(label), summary.number(series.now), best, line][: len(grid.columns)])
    if len(shown) < len(all_rows):
        grid.add_row(Text(f"and {len(all_rows) - len(shown)} more", "dim"))
    return grid


def _curve(series: Series, width: int, until: int) -> Text:
    """The course of a series; where nothing was measured its last value goes on, dimmed."""
    line, last = Text(), " "
    for block in series.course(width, until) if width > 0 else ():
        last = block or last
        line.append(last, "cyan" if block else "dim cyan")
    return line


def _grid(with_best: bool, with_curve: bool) -> Table:
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    grid.add_column("", no_wrap=True, overflow="ellipsis")
    grid.add_column("now", justify="right", no_wrap=True, min_width=8)
    if with_best:
        grid.add_column("best", justify="right", no_wrap=True, min_width=8)
    if with_curve:
        grid.add_column("", no_wrap=True, overflow="crop")
    return grid
