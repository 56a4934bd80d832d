"""TinyStories: short stories in a small child's vocabulary, written by large models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Annotated, Literal

from kdcore_text import Text
from pydantic import Field

from kdcore import Data, Stage, component, hookimpl

_HUB = {1: "roneneldan/TinyStories", 2: "noanabeshima/TinyStoriesV2"}


@component
class TinyStories(Data):
    """TinyStories from the hub, or from files with `<|endoftext|>` lines between the stories.

    `version` 2 was written by GPT-4 alone. `path` replaces the hub; then `validation` is a path
    too, or `validation_share` the share of the stories held out for it. `fraction` is the share of
    the stories to train on, `skip` the share to leave out before them.
    """

    name = "tinystories"
    version: Literal[1, 2] = 2
    path: str | list[str] | None = None
    validation: str | None = None
    validation_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    skip: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        if self.validation is not None and self.validation_share is not None:
            raise ValueError("validation and validation_share exclude each other")

    def faults(self, recipe: Stage) -> Iterator[str]:
        """Require a validation split, which files do not have."""
        return self._text.faults(recipe)

    def missing(self) -> Iterator[str]:
        """Paths that do not exist."""
        return self._text.missing()

    def texts(self, split: str) -> Iterable[str]:
        """The stories of "train" or "validation"."""
        return self._text.texts(split)

    def names_on_hub(self) -> Iterable[str]:
        """The version's name, unless a path replaces it."""
        return self._text.names_on_hub()

    def fingerprint(self) -> str:
        """The options, and the content of the files."""
        return f"{super().fingerprint()} {self._text.fingerprint()}"

    @cached_property
    def _text(self) -> Text:
        return Text(
            path=self.path or _HUB[self.version],
            separator="<|endoftext|>",
            validation=self.validation,
            validation_share=self.validation_share,
            fraction=self.fraction,
            skip=self.skip,
        )


@hookimpl
def kdcore_data() -> Sequence[type[Data]]:
    """The data `tinystories`."""
    return [TinyStories]
