"""Tokens above their numbers: the selection's score, and the student's loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from kdcore.commands.rows.page import Shown, ShownRow, Token, drawn_as, number
from kdcore.commands.rows.texts import visible

_LONGEST = 14  # columns of a token's text; the page and the view without scores show it in full
_GAP = 1


@dataclass(frozen=True)
class _Column:
    """A token: its text, and a cell for each line below it."""

    text: str
    cells: Sequence[str]
    states: Sequence[Shown]  # on each side
    differs: bool

    @property
    def width(self) -> int:
        return max(map(cell_len, (self.text, *self.cells))) + _GAP


def has_scores(row: ShownRow) -> bool:
    """Whether any token has a score."""
    return any(token.score == token.score for side in row.sides for token in side.tokens)


def scores_of(
    row: ShownRow, start: int, end: int, width: int, styles: Mapping[Shown, str]
) -> Iterator[Text]:
    """The tokens of a document, as many per line as fit, with a line for each number below."""
    labels = _labels(row)
    margin = max(map(len, labels)) + 2
    block: list[_Column] = []
    for column in (_column(row, n) for n in range(start, end)):
        if block and margin + sum(each.width for each in [*block, column]) > width:
            yield from _lines(block, labels, margin, styles)
            yield Text()
            block = []
        block.append(column)
    yield from _lines(block, labels, margin, styles)


def _labels(row: ShownRow) -> list[str]:
    kinds = ["score", "nll"] if has_scores(row) else ["nll"]
    if len(row.sides) == 1:
        return kinds
    names = [side.label.split(":")[0] for side in row.sides]
    return [f"{name} {kind}" for name in names for kind in kinds]


def _column(row: ShownRow, n: int) -> _Column:
    tokens = [side.tokens[n] for side in row.sides]
    cells: list[str] = []
    for token in tokens:
        star = "*" if token.state == "kept" else " "
        said = [number(token.nll) + star]
        if has_scores(row):
            said = [number(token.score) + star, number(token.nll) + " "]
        cells += said
    states = [drawn_as(token.state) for token in tokens]
    return _Column(_short(tokens[0]), cells, states, n in row.differing)


def _short(token: Token) -> str:
    """The token's text in few columns, with visible spaces; "⋯": a later token completes it."""
    text = visible(token.text).replace("\n", "↵").replace(" ", "␣") or "⋯"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _lines(
    block: Sequence[_Column], labels: Sequence[str], margin: int, styles: Mapping[Shown, str]
) -> Iterator[Text]:
    """The tokens in their colours; with several sides, scores are coloured too."""
    several = len(block[0].states) > 1
    line = Text(" " * margin, no_wrap=True)
    for column in block:
        style = "" if several else styles.get(column.states[0], "")
        _put(
            line, column.text, column.width, f"{style} bold underline" if column.differs else style
        )
    yield line
    each = len(labels) // len(block[0].states)  # numbers per side
    for n, label in enumerate(labels):
        line = Text(label.ljust(margin), no_wrap=True)
        for column in block:
            colour = styles.get(column.states[n // each], "")
            style = colour if several and n % each == 0 else ""
            _put(line, column.cells[n], column.width, style)
        yield line


def _put(line: Text, text: str, width: int, style: str) -> None:
    """Write a cell, right-aligned in its column."""
    line.append(" " * (width - cell_len(text)))
    line.append(text, style.strip())
