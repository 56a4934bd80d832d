"""Training and held-out documents."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

from kdcore import RunError
from kdcore_text.folders import VALIDATE, choose
from kdcore_text.formats import ENDINGS
from kdcore_text.opening import PACKED
from kdcore_text.paths import absent, is_here, is_pattern, local
from kdcore_text.record import Document, Record, records_within
from kdcore_text.sources import Reader, Several, content, read_by_datasets, source
from kdcore_text.streamed import Spaced, StreamedTexts

_log = logging.getLogger("kdcore")
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Splits(Generic[_Item]):
    """The documents of "train" and "validation" according to the options of a Data."""

    reader: Reader[_Item]
    path: str | list[str]
    split: str = "train"
    validation: str | None = None
    validation_share: float | None = None
    fraction: float = 1.0
    skip: float = 0.0
    streaming: bool = False  # documents are not counted
    warned: set[str] = field(default_factory=set)  # messages about folders already shown

    def faults(self) -> Iterator[str]:
        """Require a validation split, which files do not have."""
        if not self._paths:
            yield "path names nothing: name a file, a folder, or a data set on the hub"
        if self._files and self.validation is None and self.validation_share is None:
            yield _no_split_error(self._files[0])

    def missing(self) -> Iterator[str]:
        """Paths that do not exist, and folders without the files of a split."""
        yield from filter(None, map(absent, self._paths))
        if self.validation is not None and _is_path(self.validation):
            message = absent(self.validation, "validation")
            yield from [f"cannot read validation: {message}"] if message else []
        splits = [self.split]
        if self.validation is None and self.validation_share is None and not self._files:
            splits.append("validation")
        for folder in [local(path) for path in self._paths if path and os.path.isdir(local(path))]:
            yield from filter(None, (self._lacking(folder, split) for split in splits))

    def _lacking(self, folder: Path, split: str) -> str | None:
        """Why a folder has nothing for a split, judged by the names of its files."""
        if read_by_datasets(folder, split, self.reader):
            return None
        try:
            choose(folder, split, self.reader.forms, self.reader.format)
        except RunError as error:
            return str(error)
        return None

    def of(self, split: str) -> Iterator[_Item]:
        """The documents of "train" or "validation", in order."""
        if split == "train":
            return self._training()
        if self.validation_share is not None:
            return (item for n, item in enumerate(self._train.read()) if n in self._held_out)
        return self._validation.read()

    def stream(self: Splits[Document], split: str) -> StreamedTexts:
        """The texts of "train" or "validation" from the beginning, read anew each time."""
        fresh = replace(self)
        held_out = fresh._held_out
        if split == "train":
            return StreamedTexts(fresh._train.sources, lambda n: n not in held_out)
        if self.validation_share is not None:
            return StreamedTexts(fresh._train.sources, held_out.__contains__)
        return StreamedTexts(fresh._validation.sources, lambda n: True)

    def nothing(self, split: str, what: str) -> str:
        """The error message if there is no text, or there are no records, in a split."""
        some = [
            f"{name} = {value:g}"
            for name, value in (("fraction", self.fraction), ("skip", self.skip))
            if split == "train" and value != {"fraction": 1, "skip": 0}[name]
        ]
        of = self.validation if split != "train" and self.validation is not None else self.place
        why = f" with {' and '.join(some)} in [data]" if some else ": only blank lines or values"
        return f"{of} has no {what} for the {split!r} split{why}"

    def content(self) -> str:
        """A hash of the local files."""
        return content([*self._paths, *([self.validation] if self.validation else [])])

    def _training(self) -> Iterator[_Item]:
        begin, end = 0, None
        if self.skip or self.fraction < 1:
            count = self._train.count()
            begin, end = (round(count * share) for share in (self.skip, self.skip + self.fraction))
        items = enumerate(islice(self._train.read(), begin, end), begin)
        return (item for n, item in items if n not in self._held_out)

    @property
    def place(self) -> str:
        """The paths, for messages."""
        return ", ".join(self._paths)

    @property
    def _paths(self) -> Sequence[str]:
        return [self.path] if isinstance(self.path, str) else self.path

    @property
    def _files(self) -> Sequence[str]:
        """The paths that are files or patterns."""
        return [each for each in self._paths if os.path.isfile(local(each)) or is_pattern(each)]

    def _warn(self, message: str) -> None:
        if message not in self.warned:
            self.warned.add(message)
            _log.warning(message)

    @cached_property
    def _train(self) -> Several[_Item]:
        return source(self._paths, self.split, self.reader, self._warn)

    @cached_property
    def _validation(self) -> Several[_Item]:
        if self.validation is not None and is_here(self.validation):
            return source([self.validation], None, self.reader, self._warn)
        if self.validation is not None and (self._files or _is_path(self.validation)):
            message = f"there is no file or folder {self.validation!r} in {os.getcwd()}"
            known = absent(self.validation, "validation")
            raise RunError(f"cannot read validation: {known or message}")
        if self._files:
            raise RunError(_no_split_error(self._files[0]))
        return source(self._paths, self.validation or "validation", self.reader, self._warn)

    @cached_property
    def _held_out(self) -> Container[int]:
        """The documents held out for validation: the same for all seeds, so none trains on them."""
        if self.validation_share is None:
            return frozenset()
        if self.streaming:
            return Spaced(self.validation_share)
        count = self._train.count()
        if count == 1:
            raise self._only_one(self.validation_share)
        wanted = max(1, round(count * self.validation_share))
        return frozenset(random.Random(0).sample(range(count), min(wanted, count)))

    def _only_one(self, share: float) -> RunError:
        """The error if nothing would be left to train on, or what the document itself lacks."""
        (one,) = self._train.read()
        hint = records_within(one.values) if isinstance(one, Record) else ""
        return RunError(
            f"{self.place} has one document, which validation_share = {share:g} would hold out"
            + (
                hint
                or ": set validation = PATH in [data], or give it more (a text is split at blank "
                "lines, or where separator says)"
            )
        )


def _no_split_error(file: str) -> str:
    return f"nothing to validate on apart from {file}; {VALIDATE}"


def _is_path(validation: str) -> bool:
    """Whether it cannot be the name of a split."""
    ending = os.path.splitext(validation.lower())[1]
    return ending in {*ENDINGS, *PACKED} or any(letter in validation for letter in "/~*?")
