"""Text from files, folders and the Hugging Face hub."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Annotated

from pydantic import Field

from kdcore import Data, RunError, component, hookimpl
from kdcore_text.sources import How, Source, content, local

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
        files = [path for path in self._paths if local(path).is_file()]
        if files and self.validation is None and self.validation_share is None:
            yield _nothing_beside(files[0])

    def texts(self, split: str) -> Iterator[str]:
        """The documents of "train" or "validation" that are more than blanks, in order."""
        if split == "train":
            return self._training()
        if self.validation_share is not None:
            return _filled(self._train, lambda index: index in self._held_out)
        return _filled(self._validation)

    def fingerprint(self) -> str:
        """The options, and the content of the files that are here."""
        paths = [*self._paths, *([self.validation] if self.validation else [])]
        return f"{super().fingerprint()} {content(paths)}"

    def _training(self) -> Iterator[str]:
        begin, end = 0, None
        if self.skip or self.fraction < 1:
            count = self._train.count()
            begin, end = (round(count * share) for share in (self.skip, self.skip + self.fraction))
        return _filled(self._train, lambda index: index not in self._held_out, begin, end)

    @property
    def _paths(self) -> Sequence[str]:
        return [self.path] if isinstance(self.path, str) else self.path

    @property
    def _how(self) -> How:
        return How(self.config, self.column, self.separator)

    @cached_property
    def _train(self) -> Source:
        return self._how.source(self._paths, self.split)

    @cached_property
    def _validation(self) -> Source:
        if self.validation is not None and local(self.validation).exists():
            return self._how.source([self.validation], None)
        files = [path for path in self._paths if local(path).is_file()]
        if files and self.validation is not None:
            raise RunError(
                f"cannot read validation: there is no file or folder {self.validation!r}"
            )
        if files:
            raise RunError(_nothing_beside(files[0]))
        return self._how.source(self._paths, self.validation or "validation")

    @cached_property
    def _held_out(self) -> frozenset[int]:
        """The documents for validation: drawn once and for all, so that no seed trains on them."""
        if self.validation_share is None:
            return frozenset()
        count = self._train.count()
        wanted = max(1, round(count * self.validation_share))
        return frozenset(random.Random(0).sample(range(count), min(wanted, count)))


def _nothing_beside(file: str) -> str:
    return f"nothing to validate on beside {file}; set validation = PATH or validation_share = 0.05"


def _filled(
    source: Source,
    chosen: Callable[[int], bool] = lambda index: True,
    begin: int = 0,
    end: int | None = None,
) -> Iterator[str]:
    """The chosen ones of the documents from `begin` to `end`, without blank ones."""
    for index, text in enumerate(islice(source.read(), begin, end), begin):
        if chosen(index) and text.strip():
            yield text


@hookimpl
def kdcore_data() -> Sequence[type[Data]]:
    """The data that this plugin brings."""
    return [Text]
