"""The panel, drawn from plain values at any terminal size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from kdcore import Facts, History, Series, formatting, summary
from kdcore_panel.curves import curves
from kdcore_panel.pace import Pace
from kdcore_panel.plot import COLOURS, Plot

_BORDER = 4  # two characters on each side
_WITH_PLOT = 110 - _BORDER  # columns from which on curves are plotted next to the numbers
_NUMBERS = (56, 70)  # minimum and maximum columns of the numbers next to a plot
_FEW = 6  # curves that take precedence over the description of the training
_TALLEST = 16  # lines of the tallest plot


@dataclass
class Frame:
    """The panel's content; `now` is read from the caller's clock just before drawing."""

    facts: Facts
    history: History
    pace: Pace
    now: float = 0.0
    memory: float = 0.0
    _drawn: tuple[tuple[int, int, int], list[list[Segment]]] | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.max_height
        inside = max(width - _BORDER, 1)
        status = self._status(inside)
        lower: list[RenderableType] = [self._bar(inside), status]
        rows = height - 2 - 1 - status.row_count
        if rows > 6:
            lower.insert(1, Text())
            rows -= 1
        upper = self._upper(console, options.update(width=inside, height=None), rows)
        title = Text(formatting.shortened(self.facts.name, max(width - 6, 1)), "bold")
        yield Panel(
            Group(*([upper] if rows > 0 else []), *lower),
            title=title,
            title_align="left",
            border_style="dim",
            width=width,
        )

    def _upper(self, console: Console, options: ConsoleOptions, rows: int) -> Segments:
        """All but what changes with the clock, in at most `rows` lines; redrawn for new records."""
        key = (self.history.version, options.max_width, rows)
        if self._drawn is None or self._drawn[0] != key:
            parts = Group(*self._parts(options.max_width, rows))
            lines = console.render_lines(parts, options, new_lines=True)
            self._drawn = key, lines[: max(rows, 0)]
        return Segments([segment for line in self._drawn[1] for segment in line])

    def _parts(self, width: int, rows: int) -> list[RenderableType]:
        """The parts that fit: curves, what is trained, texts; separated by blank lines."""
        facts, texts = self._head(width), self._texts(width)
        wanted = len(summary.rows(self.history)) + 1
        heads = sum(1 + text.count("\n") for _, text in self.facts.rows()) + 1
        if rows < min(wanted, _FEW) + heads + 1:
            facts, heads = [], 0
        written = len(texts) + 1 if texts else 0
        if rows < wanted + heads + written + 1:
            texts, written = [], 0
        room = rows - heads - written - 1
        middle = self._curves(width, max(room, 1))
        blank = [Text()] if rows > 1 else []
        return [*facts, *middle, *([Text(), *texts] if texts else []), *blank]

    def _curves(self, width: int, room: int) -> list[RenderableType]:
        """The numbers, with a plot next to them from 110 columns on."""
        if width < _WITH_PLOT:
            table = curves(self.history, width, room)
            return [table] if table.row_count else []
        least, most = _NUMBERS
        numbers = min(least + width - _WITH_PLOT, most)
        table = curves(self.history, numbers, room, with_course=False)
        if not table.row_count:
            return []
        shown = self._plotted()
        lines = min(max(room, table.row_count + 1), _TALLEST)
        both = Table.grid(padding=(0, 3, 0, 0))
        both.add_column(width=numbers)
        both.add_column(width=width - numbers - 3)
        both.add_row(table, Plot(shown, max(self.history.step, 1), lines) if shown else Text())
        return [both]

    def _plotted(self) -> Sequence[tuple[str, Series]]:
        """The loss terms, or the loss, and the validation loss."""
        rows = summary.rows(self.history)
        losses = [(name, curve) for name, curve in rows if curve.name.startswith("loss")]
        measured = [(name, curve) for name, curve in rows if curve.name == "eval/nll"]
        return [*losses[: len(COLOURS) - len(measured)], *measured]

    def _head(self, width: int) -> list[RenderableType]:
        facts = self.facts.rows()
        label_width = max([len(label) for label, _ in facts], default=0)
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True, min_width=label_width)
        grid.add_column(
            no_wrap=True, overflow="ellipsis", max_width=max(width - label_width - 2, 1)
        )
        for label, text in facts:
            grid.add_row(label, Text(text))
        return [grid, Text()] if facts else []

    def _texts(self, width: int) -> list[RenderableType]:
        """The latest texts from evaluations, at most three, one line each."""
        lines: list[RenderableType] = []
        for name, text in list(self.history.texts.items())[:3]:
            shown = formatting.shortened(text, max(width - len(name) - 2, 1))
            line = Text.assemble((f"{name}  ", "dim"), shown)
            line.truncate(width, overflow="ellipsis")
            lines.append(line)
        return lines

    def _bar(self, width: int) -> Table:
        grid = Table.grid(padding=(0, 2), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True, justify="right")
        steps = self.pace.steps
        done = f"{self.pace.step:>{len(f'{steps:,}')},}/{steps:,}"
        bar = ProgressBar(
            max(steps, 1), self.pace.step, complete_style="cyan", style="bright_black"
        )
        share = formatting.percent(self.pace.share())
        label = "step " if width >= 30 else ""
        grid.add_row(Text.assemble((label, "dim"), done), bar, share)
        return grid

    def _status(self, width: int) -> Table:
        cells = [Text.assemble((f"{label} ", "dim"), said) for label, said in self._values()]
        columns = next(n for n in (8, 4, 2, 1) if n == 1 or width // n >= 17)
        columns = len(cells) if len(cells) <= columns else columns
        grid = Table.grid(expand=True)
        for _ in range(columns):
            grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for start in range(0, len(cells), columns):
            grid.add_row(*cells[start : start + columns])
        return grid

    def _values(self) -> list[tuple[str, str]]:
        latest, pace = self.history.latest, self.pace
        batch, batches = pace.in_epoch()
        in_epochs = pace.per_epoch and self.facts.in_epochs

        def last(key: str, shown: Callable[[float], str]) -> str:
            return shown(latest[key]) if key in latest else "-"

        values = {
            "epoch": f"{pace.epoch()}/{pace.epochs()}" if in_epochs else "",
            "batch": f"{batch:,}/{batches:,}" if in_epochs else "",
            "elapsed": formatting.duration(pace.elapsed(self.now)),
            "left": formatting.duration(pace.remaining(self.now)),
            "tokens/s": last("tokens_per_second", formatting.count),
            "memory": formatting.size(self.memory) if self.memory else "",
            "lr": last("lr", "{:.2e}".format),
            "kept": last("kept", formatting.percent) if self.facts.tokens else "",
        }
        return [(label, said) for label, said in values.items() if said]
