"""Tables that fit: of numbers, without the least important columns if need be, and of labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_GAP = 2


@dataclass
class Column:
    """Cells under a title; the column of the lowest importance goes first."""

    title: str
    cells: list[str]
    importance: int
    is_number: bool = True

    @property
    def width(self) -> int:
        """Of its widest cell."""
        return max(cell_len(text) for text in (self.title, *self.cells))

    @property
    def longest_word(self) -> int:
        """What its cells can be folded to."""
        return max(cell_len(word) for text in (self.title, *self.cells) for word in text.split())


def _whole(columns: Sequence[Column], widths: Mapping[int, int]) -> int:
    """Of a table, with the gaps."""
    return sum(widths[id(each)] + _GAP for each in columns) - _GAP


@dataclass
class Fitting:
    """Columns as a table of the width there is."""

    columns: Sequence[Column]
    left_out: list[str] = field(default_factory=list)
    whole: str = "--csv has all"  # where what is left out can be seen

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = list(self.columns)
        widths = {id(each): each.width for each in shown}
        texts = [each for each in shown if not each.is_number]
        if _whole(shown, widths) > options.max_width:
            # Names over several lines before numbers are left out.
            for each in texts:
                widths[id(each)] = min(each.width, max(each.longest_word, options.max_width // 2))
        while len(shown) > 1 and _whole(shown, widths) > options.max_width:
            shown.remove(min(shown, key=lambda each: each.importance))
        table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="dim")
        for column in shown:
            justify = "right" if column.is_number else "left"
            width = widths[id(column)]
            table.add_column(column.title, justify=justify, overflow="fold", max_width=width)  # type: ignore[arg-type]
        for cells in zip(*(column.cells for column in shown), strict=True):
            table.add_row(*(Text(cell) for cell in cells))
        yield table
        left_out = [column.title for column in self.columns if column not in shown]
        if left_out:
            yield Text(f"without {', '.join(left_out)}: too narrow, {self.whole}", "dim")


def labelled(rows: Iterable[tuple[str, str]]) -> Padding:
    """Texts below each other, each beside its label; long ones are folded."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(label, Text(text))
    return Padding(table, (0, 0, 0, 2))
