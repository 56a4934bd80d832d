"""Text from files, folders and the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Annotated

from pydantic import Field

from kdcore import Data, component, hookimpl
from kdcore_text.sources import Texts
from kdcore_text.splits import Splits

__all__ = ["Text"]


@component
class Text(Data):
    """Documents of a file, a folder, several of them, or a data set on the Hugging Face hub.

    `path` is what to read; of a data set, `config`, `split` and the `column` that holds the text.
    `validation` is another path, or the name of a split (without it, the split "validation");
    `validation_share` takes that share of the documents instead, always the same ones. `fraction`
    is the share of the documents to train on, `skip` the share to leave out before them. In a
    plain text file, blank lines lie between documents, or lines that are `separator`; "\\n" makes
    each line a document.
    """

    name = "text"
    path: str | list[str]
    config: str | None = None
    split: str = "train"
    validation: str | None = None
    validation_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    column: str = "text"
    separator: str | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    skip: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def __post_init__(self) -> None:
        if self.validation is not None and self.validation_share is not None:
            raise ValueError("validation and validation_share exclude each other")

    def faults(self, recipe: object) -> Iterator[str]:
        """Files have no validation split of their own."""
        return self._splits.faults()

    def texts(self, split: str) -> Iterator[str]:
        """The documents of "train" or "validation" that are more than blanks, in order."""
        return (text for text in self._splits.of(split) if text.strip())

    def fingerprint(self) -> str:
        """The options, and the content of the files that are here."""
        return f"{super().fingerprint()} {self._splits.content()}"

    @cached_property
    def _splits(self) -> Splits[str]:
        return Splits(
            Texts(self.config, self.column, self.separator),
            path=self.path,
            split=self.split,
            validation=self.validation,
            validation_share=self.validation_share,
            fraction=self.fraction,
            skip=self.skip,
        )


@hookimpl
def kdcore_data() -> Sequence[type[Data]]:
    """The data that this plugin brings."""
    return [Text]
