"""Rows of tokens on the terminal: in colours, or with marks where there are none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kdcore.commands.fitting import labelled
from kdcore.commands.rows.page import Letters, Page, Shown, ShownRow, Side
from kdcore.commands.rows.scores import has_scores, scores_of
from kdcore.commands.rows.texts import visible

STYLES: Mapping[Shown, str] = {
    "kept": "black on green",
    "dropped": "red",
    "trained": "green",
    "never": "bright_black italic",
    "partly": "black on yellow",
}
MARKS: Mapping[Shown, tuple[str, str]] = {
    "kept": ("⟦", "⟧"),
    "dropped": ("", ""),
    "trained": ("", ""),
    "never": ("⟨", "⟩"),
    "partly": ("⟦~", "⟧"),
}
_DIFFERING, _SPECIAL = "bold underline", "bold magenta"
_DIFFERENT = ("▸", "◂")
_SCORES = "Below a token: what it was ranked by, with * where it was kept, and its loss in nats."
_LOSSES = "Below a token: its loss in nats, with * where it was kept."
_LEAST = 48  # columns of a side; narrower sides are stacked
_MARGIN = (0, 0, 0, 2)


class OnTerminal:
    """A page of rows, as wide as the terminal; with `scores`, each token above its numbers."""

    def __init__(self, page: Page, *, scores: bool = False) -> None:
        self.page, self.scores = page, scores

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        plain = console.no_color or console.color_system is None
        page = self.page
        yield Text(page.title, "bold")
        yield labelled(page.facts)
        yield Text()
        yield _legend(page, plain)
        yield from (Padding(Text(note), _MARGIN) for note in [*page.notes, *self._notes(plain)])
        for row in page.rows:
            yield Text()
            yield Text(row.title, "bold")
            yield from self._row(row, plain, options.max_width)

    def _notes(self, plain: bool) -> Iterator[str]:
        """The meaning of marks and numbers that the legend lacks."""
        if plain and any(row.differing for row in self.page.rows):
            yield f"What differs stands between {' and '.join(_DIFFERENT)}."
        if self.scores:
            yield _SCORES if any(map(has_scores, self.page.rows)) else _LOSSES

    def _row(self, row: ShownRow, plain: bool, width: int) -> Iterator[RenderableType]:
        if self.scores and len(row.sides) > 1:
            yield from (Text(f"  {side.label}") for side in row.sides)
        for name, start, end in row.segments():
            yield Text(f"── {name} ", "dim")
            if self.scores:
                yield from scores_of(row, start, end, width, {} if plain else STYLES)
            else:
                yield _side_by_side(row, start, end, plain, width)


def _legend(page: Page, plain: bool) -> Padding:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="default")
    for n, (state, title) in enumerate(page.legend):
        header = Text(title, "dim") if state is None else _sample(state, title, plain)
        table.add_column(header, justify="right" if n else "left", overflow="fold")
    for cells in page.lines:
        table.add_row(*map(Text, cells))
    return Padding(table, _MARGIN)


def _sample(state: Shown, title: str, plain: bool) -> Text:
    begin, end = MARKS[state] if plain else ("", "")
    return Text().append(begin + title + end, "" if plain else STYLES[state])


def _side_by_side(row: ShownRow, start: int, end: int, plain: bool, width: int) -> RenderableType:
    """The sides of a document side by side, or stacked if that is too narrow."""
    texts = [_flowing(side, row, start, end, plain) for side in row.sides]
    if len(texts) == 1:
        return texts[0]
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    labels = [Text(side.label, "cyan") for side in row.sides]
    if width < len(texts) * (_LEAST + 2):
        grid.add_column()
        for label, text in zip(labels, texts, strict=True):
            grid.add_row(label)
            grid.add_row(text)
        return grid
    for _ in texts:
        grid.add_column(ratio=1, overflow="fold")
    grid.add_row(*labels)
    grid.add_row(*texts)
    return grid


def _flowing(side: Side, row: ShownRow, start: int, end: int, plain: bool) -> Text:
    """The text of a document with its states; line breaks are shown and kept."""
    text = Text(overflow="fold")
    marks = _Marks()
    for letters in side.letters(start, end):
        differs = not row.differing.isdisjoint(range(letters.start, letters.end))
        if plain:
            text.append(marks.before(letters.shown, differs))
        text.append(visible(letters.text).replace("\n", "↵\n"), _style(letters, differs, plain))
    text.append(marks.before(None, differs=False))
    if text.plain.endswith("\n"):
        text.right_crop(1)
    return text


class _Marks:
    """Opening and closing marks where states change."""

    def __init__(self) -> None:
        self._state: Shown | None = None
        self._differs = False

    def before(self, state: Shown | None, differs: bool) -> str:
        """The mark before tokens of this state; None at the end."""
        changes = state != self._state
        said = ""
        if self._differs and (changes or not differs):
            said += _DIFFERENT[1]
        if changes:
            said += MARKS[self._state][1] if self._state else ""
            said += MARKS[state][0] if state else ""
        if differs and (changes or not self._differs):
            said += _DIFFERENT[0]
        self._state, self._differs = state, differs
        return said


def _style(letters: Letters, differs: bool, plain: bool) -> str:
    if plain:
        return ""
    style = STYLES[letters.shown]
    if letters.tokens[-1].special:
        style = f"{style} {_SPECIAL}" if letters.shown in ("trained", "never") else f"{style} bold"
    return f"{style} {_DIFFERING}" if differs else style
