"""Line plots with axes in braille characters, each of two by four dots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from kdcore import Series, formatting

COLOURS = ("cyan", "magenta", "yellow", "green")
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row and column of a character
_STEEP = 5.0  # ratio of highest to lowest value from which on the axis is logarithmic
_EMPTY = 0x2800
_LEAST = 4  # lines of the smallest useful plot


@dataclass
class Plot:
    """At most four curves, each in its own colour; `lines` high, with legend and axis."""

    curves: Sequence[tuple[str, Series]]
    until: int
    lines: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        points = [
            [(step, value) for step, value in series.means() if math.isfinite(value)]
            for _, series in self.curves
        ]
        values = [value for some in points for _, value in some]
        rows = self.lines - 2
        if max(map(len, points), default=0) < 2 or rows < _LEAST:
            return
        axis = _Axis.of(min(values), max(values))
        labels = [axis.label(1 - row / (rows - 1)) for row in range(rows)]
        margin = max(map(len, labels)) + 1
        canvas = _Canvas(max(options.max_width - margin - 1, 1), rows)
        for number, some in enumerate(points):
            canvas.draw([(step / max(self.until, 1), axis.place(v)) for step, v in some], number)
        yield self._legend(axis, options.max_width)
        every = max((rows - 1) // 4, 1)
        for row in range(rows):
            has_label = row % every == 0 and row + every // 2 < rows and len({*labels}) > 1
            label = labels[row] if has_label else ""
            label = labels[row] if row == rows - 1 else label
            yield Text.assemble((f"{label:>{margin - 1}} ┤", "dim"), *canvas.row(row))
        last = f"step {self.until:,}"
        gap = " " * max(options.max_width - margin - 2 - len(last), 0)
        yield Text(" " * margin + "0" + gap + last, "dim", no_wrap=True)

    def _legend(self, axis: _Axis, width: int) -> Text:
        shown = Text(no_wrap=True, overflow="ellipsis")
        for number, (label, _) in enumerate(self.curves):
            shown.append("━ ", COLOURS[number])
            shown.append(f"{label.strip()}  ")
        if axis.is_logarithmic:
            shown.append("logarithmic", "dim")
        shown.truncate(width, overflow="ellipsis")
        return shown


@dataclass(frozen=True)
class _Axis:
    """Maps values to positions from 0 (lowest) to 1."""

    low: float
    high: float
    is_logarithmic: bool

    @classmethod
    def of(cls, low: float, high: float) -> _Axis:
        """A linear axis, or a logarithmic one if the values span a large ratio."""
        if low > 0 and high > _STEEP * low:
            return cls(math.log(low), math.log(high), True)
        return cls(low, high, False)

    def place(self, value: float) -> float:
        at = math.log(value) if self.is_logarithmic else value
        return (at - self.low) / (self.high - self.low) if self.high > self.low else 0.0

    def label(self, place: float) -> str:
        at = self.low + place * (self.high - self.low)
        return formatting.value(math.exp(at) if self.is_logarithmic else at)


class _Canvas:
    """Braille characters, each in the colour of the curve drawn there last."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._letters = [[_EMPTY] * width for _ in range(height)]
        self._colours = [[0] * width for _ in range(height)]

    def draw(self, places: Sequence[tuple[float, float]], number: int) -> None:
        """A line through points with x and y from 0 to 1."""
        across, up = self.width * 2 - 1, self.height * 4 - 1
        dots = [(round(min(x, 1.0) * across), round((1 - y) * up)) for x, y in places]
        for one, two in zip(dots, dots[1:] or dots, strict=False):
            steps = max(abs(two[0] - one[0]), abs(two[1] - one[1]), 1)
            for n in range(steps + 1):
                x = round(one[0] + (two[0] - one[0]) * n / steps)
                y = round(one[1] + (two[1] - one[1]) * n / steps)
                self._dot(x, y, number)

    def _dot(self, x: int, y: int, number: int) -> None:
        row, column = y // 4, x // 2
        self._letters[row][column] |= _DOTS[y % 4][x % 2]
        self._colours[row][column] = number

    def row(self, row: int) -> list[tuple[str, str]]:
        """The characters of a row with their colours."""
        pairs = zip(self._letters[row], self._colours[row], strict=True)
        return [(chr(letter) if letter != _EMPTY else " ", COLOURS[n]) for letter, n in pairs]
