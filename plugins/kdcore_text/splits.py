"""Which documents are trained on, and which are held out."""

from __future__ import annotations

import os
import random
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Generic, TypeVar

from kdcore import RunError
from kdcore_text.sources import Reader, Several, content, local, source
from kdcore_text.streamed import Spaced, StreamedTexts

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Splits(Generic[_Item]):
    """The documents of "train" and of "validation" that the options of a Data ask for."""

    reader: Reader[_Item]
    path: str | list[str]
    split: str = "train"
    validation: str | None = None
    validation_share: float | None = None
    fraction: float = 1.0
    skip: float = 0.0
    streaming: bool = False  # documents are not counted

    def faults(self) -> Iterator[str]:
        """Files have no validation split of their own."""
        files = [path for path in self._paths if os.path.isfile(local(path))]
        if files and self.validation is None and self.validation_share is None:
            yield _nothing_beside(files[0])

    def of(self, split: str) -> Iterator[_Item]:
        """The documents of "train" or "validation", in order."""
        if split == "train":
            return self._training()
        if self.validation_share is not None:
            return (item for n, item in enumerate(self._train.read()) if n in self._held_out)
        return self._validation.read()

    def stream(self: Splits[str], split: str) -> StreamedTexts:
        """The texts of "train" or "validation", from the beginning, each time anew."""
        fresh = replace(self)
        held_out = fresh._held_out
        if split == "train":
            return StreamedTexts(fresh._train.sources, lambda n: n not in held_out)
        if self.validation_share is not None:
            return StreamedTexts(fresh._train.sources, held_out.__contains__)
        return StreamedTexts(fresh._validation.sources, lambda n: True)

    def content(self) -> str:
        """A hash of the files that are here."""
        return content([*self._paths, *([self.validation] if self.validation else [])])

    def _training(self) -> Iterator[_Item]:
        begin, end = 0, None
        if self.skip or self.fraction < 1:
            count = self._train.count()
            begin, end = (round(count * share) for share in (self.skip, self.skip + self.fraction))
        items = enumerate(islice(self._train.read(), begin, end), begin)
        return (item for n, item in items if n not in self._held_out)

    @property
    def _paths(self) -> Sequence[str]:
        return [self.path] if isinstance(self.path, str) else self.path

    @cached_property
    def _train(self) -> Several[_Item]:
        return source(self._paths, self.split, self.reader)

    @cached_property
    def _validation(self) -> Several[_Item]:
        if self.validation is not None and os.path.exists(local(self.validation)):
            return source([self.validation], None, self.reader)
        files = [path for path in self._paths if os.path.isfile(local(path))]
        if files and self.validation is not None:
            raise RunError(
                f"cannot read validation: there is no file or folder {self.validation!r}"
            )
        if files:
            raise RunError(_nothing_beside(files[0]))
        return source(self._paths, self.validation or "validation", self.reader)

    @cached_property
    def _held_out(self) -> Container[int]:
        """The documents for validation: drawn once and for all, so that no seed trains on them."""
        if self.validation_share is None:
            return frozenset()
        if self.streaming:
            return Spaced(self.validation_share)
        count = self._train.count()
        wanted = max(1, round(count * self.validation_share))
        return frozenset(random.Random(0).sample(range(count), min(wanted, count)))


def _nothing_beside(file: str) -> str:
    return f"nothing to validate on beside {file}; set validation = PATH or validation_share = 0.05"
