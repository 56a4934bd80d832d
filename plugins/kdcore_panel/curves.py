"""The curves as numbers: one line each, with a sparkline or a note."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from kdcore import History, Series, summary

_NARROWEST = 8  # columns of the shortest useful sparkline


def curves(history: History, width: int, room: int, *, with_course: bool = True) -> Table:
    """Name, last and best value of each curve, in at most `room` lines, with sparkline and note."""
    all_rows = summary.rows(history)
    has_head = bool(all_rows) and room > len(all_rows)
    room -= has_head
    shown = all_rows if len(all_rows) <= room else all_rows[: max(room - 1, 0)]
    left_out = f"and {len(all_rows) - len(shown)} more" if len(shown) < len(all_rows) else ""
    names = max([len(label) for label, _ in shown] + [len(left_out)])
    names = min(names, max(width - 8 - 2, 1), 24)
    space = width - names - 2 * 8 - 3 * 2
    grid = _grid(names, with_best=space >= -2, space=max(space, 0))
    grid.show_header = has_head
    for label, series in shown:
        cells = [Text(label), summary.number(series.now), _best(series)]
        if space > 0:
            cells.append(_trend(history, series, space, with_course))
        grid.add_row(*cells[: len(grid.columns)])
    if left_out:
        grid.add_row(Text(left_out, "dim"))
    return grid


def _best(series: Series) -> Text:
    """The best value, for curves that have a better direction."""
    has_best = not series.name.startswith("selection/")
    return summary.number(series.best, "dim") if has_best else Text()


def _trend(history: History, series: Series, width: int, with_course: bool) -> Text:
    """A curve's sparkline, and its note if there is room for both; else the note alone."""
    said = _fitting(summary.note(history, series), width)
    course = min(width - (len(said) + 2 if said else 0), max(history.records, 1))
    if not with_course or (said and course < _NARROWEST):
        return Text(said, "dim")
    line = _course(series, course, max(history.step, 1)) if width >= _NARROWEST else Text()
    return Text.assemble(line, "  " if said else "", (said, "dim"))


def _fitting(said: str, width: int) -> str:
    """As much of a list as fits."""
    while len(said) > width:
        said = said.rpartition(", ")[0]
    return said


def _course(series: Series, width: int, until: int) -> Text:
    """The sparkline of a series; gaps repeat the last value, dimmed."""
    line, last = Text(), " "
    for block in series.course(width, until) if width > 0 else ():
        last = block or last
        line.append(last, "cyan" if block else "dim cyan")
    return line


def _grid(names: int, *, with_best: bool, space: int) -> Table:
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    grid.add_column("", no_wrap=True, overflow="ellipsis", width=max(names, 1))
    grid.add_column("now", justify="right", no_wrap=True, min_width=8)
    if with_best:
        grid.add_column("best", justify="right", no_wrap=True, min_width=8)
    if with_best and space:
        grid.add_column("", no_wrap=True, overflow="crop", max_width=space)
    return grid
