"""Charts as inline SVG: curves with bands, and intervals. Colours are CSS classes of the page.

For readers who cannot see colours or pictures, each line also has its own dash pattern, and each
chart a description in words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape

from kdcore.terminal.formatting import count, duration, value

WIDTH, HEIGHT = 380, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 34
_POINTS = 160  # points per line
_LETTER = 6.4  # the mean width of a letter, on the safe side
COLOURS = 6
_DASHES = ("", "7 3", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class Point:
    """The mean over seeds at a position, with the lowest and the highest value."""

    x: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """A curve; arms keep their style across charts."""

    label: str
    style: int
    points: Sequence[Point] = field(repr=False)

    def thinned(self) -> Sequence[Point]:
        """A subset of points, including the last."""
        stride = math.ceil(len(self.points) / _POINTS)
        return [*self.points[:-1:stride], *self.points[-1:]] if stride > 1 else self.points


def dash_of(style: int) -> str:
    """The dash pattern of a line; neighbours in colour or number have another one."""
    return _DASHES[(style + style // COLOURS) % len(_DASHES)]


def curves(title: str, lines: Sequence[Line], axis: str) -> str:
    """Lines with bands over tokens, seconds or steps."""
    drawn = [Line(line.label, line.style, line.thinned()) for line in lines if line.points]
    if not drawn:
        return ""
    xs = [point.x for line in drawn for point in line.points]
    lows = [point.low for line in drawn for point in line.points]
    highs = [point.high for line in drawn for point in line.points]
    plot = _Plot(ticks(min(xs), max(xs), 4), ticks(min(lows), max(highs), 5))
    body = [*plot.grid(axis), *(part for line in drawn for part in _drawn(plot, line))]
    return _svg(title, ". ".join(_in_words(line, axis) for line in drawn), body, HEIGHT)


def _in_words(line: Line, axis: str) -> str:
    first, last = line.points[0], line.points[-1]
    return (
        f"{line.label}: {value(first.mean)} at {at_axis(first.x, axis)}, {value(last.mean)} at "
        f"{at_axis(last.x, axis)}"
    )


def at_axis(x: float, axis: str) -> str:
    """A position on an axis in words."""
    return duration(x) if axis == "time" else f"{count(x)} {axis}"


def _drawn(plot: _Plot, line: Line) -> Iterator[str]:
    colour = line.style % COLOURS
    if any(point.high > point.low for point in line.points):
        there = [(point.x, point.high) for point in line.points]
        back = [(point.x, point.low) for point in reversed(line.points)]
        yield f'<path class="band f{colour}" d="{plot.path([*there, *back])}Z"/>'
    if len(line.points) == 1:
        x, y = plot.place(line.points[0].x, line.points[0].mean)
        yield f'<circle class="f{colour} dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        return
    path = plot.path([(point.x, point.mean) for point in line.points])
    dash = f' stroke-dasharray="{found}"' if (found := dash_of(line.style)) else ""
    yield f'<path class="line s{colour}"{dash} d="{path}"/>'


@dataclass(frozen=True)
class _Plot:
    """Maps values to coordinates."""

    across: Sequence[float]  # ticks of the horizontal axis
    up: Sequence[float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        width, height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
        right = (x - self.across[0]) / (self.across[-1] - self.across[0])
        above = (y - self.up[0]) / (self.up[-1] - self.up[0])
        return _LEFT + width * right, _TOP + height * (1 - above)

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        places = (self.place(x, y) for x, y in points)
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)

    def grid(self, axis: str) -> Iterator[str]:
        low = HEIGHT - _BOTTOM
        for tick in self.up:
            _, y = self.place(self.across[0], tick)
            yield f'<path class="ruling" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>'
            yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(tick)}</text>'
        for n, tick in enumerate(self.across):
            x, _ = self.place(tick, self.up[0])
            anchor = "middle" if n < len(self.across) - 1 else "end"
            said = duration(tick) if axis == "time" else _tick(tick)
            yield f'<text x="{x:.1f}" y="{low + 14}" text-anchor="{anchor}">{said}</text>'
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        yield f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{axis}</text>'


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """About this many round numbers around low and high."""
    if not high > low:
        room = abs(low) * 0.1 or 1.0
        low, high = low - room, high + room
    rough = (high - low) / wanted
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * n for n in (1, 2, 2.5, 5, 10) if size * n >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def _tick(number: float) -> str:
    if abs(number) >= 1e6:
        return f"{number / 1e6:g}M"
    return f"{number / 1e3:g}k" if abs(number) >= 1e4 else f"{round(number, 9):g}"


@dataclass(frozen=True)
class Interval:
    """A mean difference from the baseline."""

    label: str
    style: int
    mean: float
    low: float
    high: float


def intervals(title: str, found: Sequence[Interval], margin: float) -> str:
    """Differences with their intervals around 0; the margin is shaded."""
    known = [each for each in found if math.isfinite(each.low)]
    if not known:
        return ""
    ends = [0.0, margin, -margin, *(end for each in known for end in (each.low, each.high))]
    across = ticks(min(ends), max(ends), 4)
    height = _TOP + 34 * len(known) + _BOTTOM
    body = list(_scale(across, height, margin))
    for n, each in enumerate(known):
        body += _interval(each, across, _TOP + 34 * n)
    said = ". ".join(
        f"{each.label}: {each.mean:+.4f}, from {each.low:+.4f} to {each.high:+.4f}"
        for each in known
    )
    return _svg(title, said, body, height)


def _x(number: float, across: Sequence[float]) -> float:
    return 22 + (WIDTH - 44) * (number - across[0]) / (across[-1] - across[0])


def _scale(across: Sequence[float], height: int, margin: float) -> Iterator[str]:
    low = height - _BOTTOM + 4
    left, right = (_x(end, across) for end in (-margin, margin))
    yield f'<path class="margin" d="M{left:.1f} {_TOP}H{right:.1f}V{low}H{left:.1f}Z"/>'
    for tick in across:
        x = _x(tick, across)
        kind = "zero" if abs(tick) < 1e-12 else "ruling"
        yield f'<path class="{kind}" d="M{x:.1f} {_TOP}V{low}"/>'
        yield f'<text x="{x:.1f}" y="{low + 14}" text-anchor="middle">{_tick(tick)}</text>'
    yield (
        f'<text x="{WIDTH / 2}" y="{height - 2}" text-anchor="middle">'
        "difference from the baseline; shaded: the margin</text>"
    )


def _interval(each: Interval, across: Sequence[float], top: float) -> Iterator[str]:
    low, mean, high = (_x(number, across) for number in (each.low, each.mean, each.high))
    colour, y = each.style % COLOURS, top + 24
    label = _fitting(each.label)
    half = len(label) * _LETTER / 2
    middle = min(max(mean, half), WIDTH - half)
    yield f'<text x="{middle:.1f}" y="{top + 13}" text-anchor="middle">{escape(label)}</text>'
    ends = f"M{low:.1f} {y - 4}V{y + 4}M{high:.1f} {y - 4}V{y + 4}"
    yield f'<path class="line s{colour}" d="M{low:.1f} {y}H{high:.1f}{ends}"/>'
    yield f'<circle class="f{colour} dot" cx="{mean:.1f}" cy="{y}" r="4"/>'


def _fitting(label: str) -> str:
    """A label that is no wider than the chart: arms often differ at their ends, so both stay."""
    longest = int(WIDTH / _LETTER)
    if len(label) <= longest:
        return label
    return f"{label[: longest // 2 - 1]}…{label[-(longest // 2 - 1) :]}"


def swatch(style: int) -> str:
    """A sample of an arm's line, for the legend."""
    dash = f' stroke-dasharray="{found}"' if (found := dash_of(style)) else ""
    line = f'<path class="line s{style % COLOURS}"{dash} d="M1 5H33"/>'
    return f'<svg class="swatch" viewBox="0 0 34 10" aria-hidden="true">{line}</svg>'


def _svg(title: str, said: str, body: Sequence[str], height: int) -> str:
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label='
    return f'{head}"{escape(f"{title}. {said}.")}">{"".join(body)}</svg>'
