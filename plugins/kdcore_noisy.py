"""Data with a damaged part, as a test bed for token selection."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field

from kdcore import Data, Row, RunError, component, hookimpl

_SHARED = ("block", "rows", "cut", "eos")
_LETTERS = 0.35  # share of a line's letters that are replaced


@component
class Noisy(Data):
    """Another data set whose train split has damaged lines; validation stays clean.

    Each line is damaged with probability `share`: half of the damaged lines have their words
    shuffled, the other half about a third of their letters replaced by random ones. Set row options
    here, not in `source`.
    """

    name = "noisy"
    source: Data
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for option in _SHARED:
            value = getattr(self.source, option)
            if value not in (getattr(Data, option), getattr(self, option)):
                raise ValueError(f"{option} belongs next to source, not in it")

    def texts(self, split: str) -> Iterator[str]:
        """The documents of the source, in order."""
        for index, text in enumerate(self.source.texts(split)):
            yield self._damaged(text, index) if split == "train" else text

    def documents(self, split: str) -> Iterator[str | Row]:
        """The documents with the source's columns."""
        for index, given in enumerate(self.source.documents(split)):
            text = given if isinstance(given, str) else given.get("text")
            if text is None:
                raise RunError("noisy corrupts texts, but its source gives token ids")
            said = self._damaged(text, index) if split == "train" else text
            yield said if isinstance(given, str) else {**given, "text": said}

    def column_names(self) -> Sequence[str] | None:
        """The source's columns."""
        return self.source.column_names()

    def _damaged(self, text: str, index: int) -> str:
        rng = random.Random(f"{self.seed} {index}")
        return "\n".join(self._line(line, rng) for line in text.split("\n"))

    def _line(self, line: str, rng: random.Random) -> str:
        if rng.random() >= self.share:
            return line
        return _shuffled(line, rng) if rng.random() < 0.5 else _mistyped(line, rng)


def _shuffled(line: str, rng: random.Random) -> str:
    words = line.split()
    rng.shuffle(words)
    return " ".join(words)


def _mistyped(line: str, rng: random.Random) -> str:
    def perhaps(letter: re.Match[str]) -> str:
        return rng.choice(string.ascii_lowercase) if rng.random() < _LETTERS else letter[0]

    return re.sub(r"[^\W\d_]", perhaps, line)


@hookimpl
def kdcore_data() -> Sequence[type[Data]]:
    """The data `noisy`."""
    return [Noisy]
