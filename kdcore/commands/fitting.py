"""Tables that fit the terminal: columns of least importance are dropped first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.control import strip_control_codes
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

_GAP = 2


@dataclass
class Column:
    """Cells under a title, with the importance of the column."""

    title: str
    cells: list[str]
    importance: int
    is_number: bool = True

    @property
    def width(self) -> int:
        """The width of its widest cell."""
        return max(cell_len(text) for text in (self.title, *self.cells))

    @property
    def longest_word(self) -> int:
        """The width to which cells can be folded."""
        return max(cell_len(word) for text in (self.title, *self.cells) for word in text.split())


def _whole(columns: Sequence[Column], widths: Mapping[int, int]) -> int:
    """The width of a table, gaps included."""
    return sum(widths[id(each)] + _GAP for each in columns) - _GAP


@dataclass
class Fitting:
    """Columns as a table of the available width."""

    columns: Sequence[Column]
    left_out: list[str] = field(default_factory=list)
    whole: str = "--csv has all"  # where dropped columns can be seen

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = list(self.columns)
        widths = {id(each): each.width for each in shown}
        texts = [each for each in shown if not each.is_number]
        if _whole(shown, widths) > options.max_width:
            # Fold names before dropping numbers.
            for each in texts:
                widths[id(each)] = min(each.width, max(each.longest_word, options.max_width // 2))
        while len(shown) > 1 and _whole(shown, widths) > options.max_width:
            shown.remove(min(shown, key=lambda each: each.importance))
        fitted = [min(widths[id(each)], options.max_width) for each in shown]
        yield from self._row([each.title for each in shown], shown, fitted, console, "dim")
        for cells in zip(*(column.cells for column in shown), strict=True):
            yield from self._row(cells, shown, fitted, console)
        left_out = [column.title for column in self.columns if column not in shown]
        if left_out:
            yield Text(f"without {', '.join(left_out)}: too narrow, {self.whole}", "dim")

    def _row(
        self,
        cells: Sequence[str],
        columns: Sequence[Column],
        widths: Sequence[int],
        console: Console,
        style: str = "none",
    ) -> Iterator[Segment]:
        """The lines of a row. rich's own tables take four seconds for ten thousand rows."""
        folded = [_folded(cell, width, console) for cell, width in zip(cells, widths, strict=True)]
        for line in zip_longest(*folded, fillvalue=""):
            parts = [
                _padded(text, width, column.is_number)
                for text, column, width in zip(line, columns, widths, strict=True)
            ]
            yield Segment((" " * _GAP).join(parts), console.get_style(style))
            yield Segment.line()


def _folded(cell: str, width: int, console: Console) -> list[str]:
    """The lines of a cell, without control codes."""
    plain = strip_control_codes(cell)
    if plain.isprintable() and cell_len(plain) <= width:
        return [plain]
    return [line.plain.rstrip() for line in Text(plain).wrap(console, width, overflow="fold")]


def _padded(text: str, width: int, is_number: bool) -> str:
    blank = " " * (width - cell_len(text))
    return blank + text if is_number else text + blank


def labelled(rows: Iterable[tuple[str, str]]) -> Padding:
    """Labelled texts, one per line; long ones are folded."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(label, Text(text))
    return Padding(table, (0, 0, 0, 2))
