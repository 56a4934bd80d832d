"""Rows of tokens as one self-contained HTML file, readable without colours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import chain

from kdcore.commands.rows.page import Letters, Page, Shown, ShownRow, Side, Token, number
from kdcore.commands.rows.texts import visible

# Underlined, upright and slanted: the states without colours and style sheet.
_ELEMENTS: Mapping[Shown, str] = {
    "kept": "u",
    "dropped": "span",
    "trained": "span",
    "never": "i",
    "partly": "u",
}
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; }
h2 { font-size: 1rem; margin: 2rem 0 0; }
h3, h4 { font-size: .85rem; font-weight: normal; margin: .8rem 0 0; opacity: .7; }
table { border-collapse: collapse; margin: .8rem 0; }
th, td { padding: .1rem 1.2rem .1rem 0; text-align: left; vertical-align: top; }
th, .numbers td { white-space: nowrap; }
th { font-weight: normal; }
.sides { display: grid; gap: 0 2rem; grid-auto-columns: minmax(0, 1fr); grid-auto-flow: column; }
pre { font: 14px/1.7 ui-monospace, monospace; margin: .2rem 0; overflow-wrap: anywhere;
      white-space: pre-wrap; }
.kept { background: #bfe8c4; color: #000; }
.dropped { color: #b3261e; }
.trained { color: #1b5e20; }
.never { color: #777; }
.partly { background: #f3e29b; color: #000; }
.special { border: 1px solid; border-radius: 3px; }
b > * { outline: 2px solid #7a4fd0; }
.end { opacity: .5; }
@media (max-width: 60rem) { .sides { grid-auto-flow: row; } }
@media (prefers-color-scheme: dark) {
  .dropped { color: #ff9a92; } .trained { color: #8fd694; } .never { color: #999; }
}
"""


def as_html(pages: Sequence[Page], *, scores: bool = False) -> str:
    """The pages, one below another. With `scores`, tokens show their numbers on hover."""
    title = ", ".join(page.title for page in pages)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    body = "\n".join(chain.from_iterable(_page(page, scores) for page in pages))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _page(page: Page, scores: bool) -> Iterator[str]:
    yield f"<h1>{escape(page.title)}</h1>"
    yield _table([f"<td>{escape(label)}<td>{escape(text)}" for label, text in page.facts])
    header = "".join(f"<th>{_title(state, title)}" for state, title in page.legend)
    lines = ["".join(f"<td>{escape(cell)}" for cell in cells) for cells in page.lines]
    yield _table([header, *lines], "numbers")
    yield from (f"<p>{escape(note)}</p>" for note in page.notes)
    for row in page.rows:
        yield from _row(row, scores)


def rows_html(rows: Iterable[ShownRow]) -> str:
    """Rows without a page around them, each token with its numbers."""
    return "\n".join(chain.from_iterable(_row(row, True, heading=4) for row in rows))


def _table(lines: Iterable[str], kind: str = "facts") -> str:
    return f'<table class="{kind}">' + "".join(f"<tr>{line}" for line in lines) + "</table>"


def _title(state: Shown | None, title: str) -> str:
    return escape(title) if state is None else _element(state, [], "", escape(title))


def _row(row: ShownRow, scores: bool, heading: int = 2) -> Iterator[str]:
    yield f"<section><h{heading}>{escape(row.title)}</h{heading}>"
    for name, start, end in row.segments():
        below = heading + 1
        yield f'<h{below}>{escape(name)}</h{below}><div class="sides">'
        yield from (_side(side, row, (start, end), scores, heading + 2) for side in row.sides)
        yield "</div>"
    yield "</section>"


def _side(side: Side, row: ShownRow, span: tuple[int, int], scores: bool, heading: int) -> str:
    label = f"<h{heading}>{escape(side.label)}</h{heading}>" if side.label else ""
    said = "".join(_letters(each, row.differing, scores) for each in side.letters(*span))
    return f"<div>{label}<pre>{said}</pre></div>"


def _letters(letters: Letters, differing: frozenset[int], scores: bool) -> str:
    text = escape(visible(letters.text)).replace("\n", '<span class="end">↵</span>\n')
    about = "; ".join(_about(token, scores) for token in letters.tokens)
    classes = ["special"] if letters.tokens[-1].special else []
    element = _element(letters.shown, classes, about, text)
    differs = not differing.isdisjoint(range(letters.start, letters.end))
    return f"<b>{element}</b>" if differs else element


def _about(token: Token, scores: bool) -> str:
    said = f"{token.state}, id {token.id}"
    if scores and token.nll == token.nll:
        said += f", nll {number(token.nll)}"
    if scores and token.score == token.score:
        said += f", score {number(token.score)}"
    return said


def _element(state: Shown, classes: Sequence[str], about: str, inside: str) -> str:
    tag, title = _ELEMENTS[state], f' title="{escape(about)}"' if about else ""
    return f'<{tag} class="{" ".join([state, *classes])}"{title}>{inside}</{tag}>'
