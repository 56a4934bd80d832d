"""Rows of tokens, as the terminal and the HTML page show them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

State = Literal["kept", "dropped", "trained", "prompt", "first"]
Shown = Literal["kept", "dropped", "trained", "never", "partly"]
"""States as drawn: "never" is never valid; "partly" is a character of several states."""

_NEVER = ("prompt", "first")


@dataclass(frozen=True)
class Token:
    """One token of a row."""

    id: int
    text: str  # "" if a later token completes the character
    state: State
    special: bool = False  # the end of a document, or marks of a dialogue
    nll: float = float("nan")
    score: float = float("nan")


@dataclass(frozen=True)
class Letters:
    """Tokens that can only be shown together; nearly always a single one."""

    start: int  # index of the first in the row
    tokens: Sequence[Token]

    @property
    def end(self) -> int:
        """Index after the last in the row."""
        return self.start + len(self.tokens)

    @property
    def text(self) -> str:
        """Their joint text."""
        return "".join(token.text for token in self.tokens)

    @property
    def shown(self) -> Shown:
        """How they are drawn."""
        found = {drawn_as(token.state) for token in self.tokens}
        return found.pop() if len(found) == 1 else "partly"


@dataclass(frozen=True)
class Side:
    """A row under one set of weights."""

    label: str  # which weights; "" if none are loaded
    tokens: Sequence[Token]

    def letters(self, start: int, end: int) -> Iterator[Letters]:
        """The tokens from index `start` to `end`, grouped by character."""
        at = start
        for n in range(start, end):
            if self.tokens[n].text or n == end - 1:
                yield Letters(at, self.tokens[at : n + 1])
                at = n + 1


@dataclass(frozen=True)
class ShownRow:
    """A row under one or several sets of weights."""

    title: str
    documents: Mapping[int, str]  # where each one begins -> which
    sides: Sequence[Side]

    @cached_property
    def differing(self) -> frozenset[int]:
        """Indices of tokens whose states differ between the sides."""
        states = zip(*([token.state for token in side.tokens] for side in self.sides), strict=True)
        return frozenset(n for n, found in enumerate(states) if len(set(found)) > 1)

    def segments(self) -> Iterator[tuple[str, int, int]]:
        """Each document in the row: which, and the indices where it begins and ends."""
        length = len(self.sides[0].tokens)
        starts = sorted(self.documents)
        for start, end in zip(starts, [*starts[1:], length], strict=True):
            yield self.documents[start], start, end


@dataclass(frozen=True)
class Page:
    """Rows of one kind with their legend."""

    title: str
    facts: Sequence[tuple[str, str]]
    legend: Sequence[tuple[Shown | None, str]]  # columns: a state in its colours, or a title
    lines: Sequence[Sequence[str]]  # rows of the legend: numbers
    rows: Sequence[ShownRow]
    notes: Sequence[str] = field(default=())


def drawn_as(state: State) -> Shown:
    """How a state is drawn."""
    return "never" if state in _NEVER else state  # type: ignore[return-value]


def counted(number: int, whole: int) -> str:
    """A count with its share: "1,229 (60 %)"."""
    return f"{number:,} ({number / whole:.0%})".replace("%", " %") if whole else f"{number:,}"


def number(value: float) -> str:
    """A score or a loss; a dash where there is none."""
    return "-" if value != value else f"{value:.2f}"
