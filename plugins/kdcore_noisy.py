"""Other data with some of its training documents damaged, to see what a selection is worth."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field

from kdcore import Data, component, hookimpl

_LETTERS_LOST = 0.35


@component
class Noisy(Data):
    """Each line of the source's training texts is damaged with probability `share`.

    Half of these have their words shuffled, the others a third of their letters made random. The
    validation split stays clean. What is damaged depends on the seed and the line's place only.
    """

    name = "noisy"
    source: Data
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    seed: int = 0

    def texts(self, split: str) -> Iterator[str]:
        """The source's documents, damaged in "train"."""
        for index, text in enumerate(self.source.texts(split)):
            yield self._damaged(text, index) if split == "train" else text

    def _damaged(self, text: str, index: int) -> str:
        draw = random.Random(f"{self.seed} {index}")
        return "\n".join(self._line(line, draw) for line in text.split("\n"))

    def _line(self, line: str, draw: random.Random) -> str:
        if draw.random() >= self.share:
            return line
        return _shuffled(line, draw) if draw.random() < 0.5 else _scrambled(line, draw)


def _shuffled(line: str, draw: random.Random) -> str:
    words = line.split(" ")
    draw.shuffle(words)
    return " ".join(words)


def _scrambled(line: str, draw: random.Random) -> str:
    return "".join(
        draw.choice(string.ascii_lowercase)
        if letter.isalpha() and draw.random() < _LETTERS_LOST
        else letter
        for letter in line
    )


@hookimpl
def kdcore_data() -> Sequence[type[Data]]:
    """The data that this plugin brings."""
    return [Noisy]
