"""TinyStories: short stories in the words of a small child (Eldan and Li, arXiv 2305.07759)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from kdcore_text import Text
from pydantic import Field

from kdcore import Data, component, hookimpl

_HUB = {1: "roneneldan/TinyStories", 2: "noanabeshima/TinyStoriesV2"}


@component
class TinyStories(Data):
    """The stories from the hub, or from files whose stories end at `<|endoftext|>` lines."""

    name = "tinystories"
    version: Literal[1, 2] = 2
    path: str | None = None  # a file or folder in place of the hub
    validation: str | None = None  # the same for validation
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0  # the first share of the training stories

    def faults(self, recipe: object) -> Iterator[str]:
        """Both files are needed, or none."""
        if (self.path is None) != (self.validation is None):
            yield "path and validation go together: files for both, or the hub for both"

    def texts(self, split: str) -> Iterator[str]:
        """The stories of "train" or "validation"."""
        return Text(
            path=self.path or _HUB[self.version],
            validation=self.validation,
            separator="<|endoftext|>",
            fraction=self.fraction,
        ).texts(split)


@hookimpl
def kdcore_data() -> Sequence[type[Data]]:
    """The data that this plugin brings."""
    return [TinyStories]
