"""Text from the hub, from a folder, or from files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from kdcore import Data, RunError, component, hookimpl

if TYPE_CHECKING:
    from datasets import Dataset

_READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_SUFFIXES = (".txt", *_READERS)
_Share = Annotated[float, Field(gt=0, lt=1)]


@component
class Text(Data):
    """Documents from a hub id, a folder, or .txt, .jsonl, .json and .parquet files.

    In a .txt file documents end at a line that is just `separator`, or without one at blank lines.
    Of the others, each row's `column` is a document.
    """

    name = "text"
    path: str | list[str]
    config: str | None = None  # of a hub id
    split: str = "train"  # of a hub id
    validation: str | None = None  # a split of a hub id, or a file or folder
    validation_share: _Share | None = None  # of the training documents, drawn once, left out there
    column: str = "text"
    separator: str | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0  # the first share of the training documents

    def faults(self, recipe: object) -> Iterator[str]:
        """Files have no validation split of their own."""
        if self.validation and self.validation_share:
            yield "validation and validation_share are both given; keep one of them"
        elif self._files(self.path) and not (self.validation or self.validation_share):
            yield "there is nothing to validate on: give validation = PATH, or validation_share"

    def texts(self, split: str) -> Iterator[str]:
        """The documents, without empty ones."""
        if split == "validation" and self.validation_share is None:
            documents = self._documents(self.validation or "validation", is_split=True)
        else:
            documents = self._documents(self.path)
            if self.validation_share is not None:
                documents = self._share_of(documents, split)
            if split == "train" and self.fraction < 1:
                kept = list(documents)
                documents = kept[: round(self.fraction * len(kept))]
        return (text for text in documents if text.strip())

    def _documents(self, source: str | list[str], *, is_split: bool = False) -> Iterable[str]:
        """The documents of files, or of a split of the hub's data set."""
        files = self._files(source)
        if files:
            return (text for file in files for text in self._in_file(file))
        if isinstance(source, list) or (is_split and self._files(self.path)):
            raise RunError(f"data {self.name!r}: there is no file or folder {source}")
        table = _from_hub(self._hub_id(), self.config, source if is_split else self.split)
        return self._column(table, self._hub_id())

    def _hub_id(self) -> str:
        assert isinstance(self.path, str), "a list names files"
        return self.path

    def _files(self, source: str | list[str]) -> list[Path]:
        """The files that a path or list of paths means; none for what is not here."""
        paths = [
            Path(one).expanduser() for one in ([source] if isinstance(source, str) else source)
        ]
        if not all(path.exists() for path in paths):
            return []
        found = [file for path in paths for file in _inside(path)]
        if not found:
            raise RunError(f"data {self.name!r}: {source} holds no {', '.join(_SUFFIXES)} files")
        return found

    def _in_file(self, file: Path) -> Iterable[str]:
        if file.suffix == ".txt":
            return _documents_of(file, self.separator)
        if file.suffix not in _READERS:
            raise RunError(f"data {self.name!r}: {file} is none of {', '.join(_SUFFIXES)}")
        return self._column(_read(file), str(file))

    def _column(self, table: Dataset, place: str) -> Iterable[str]:
        if self.column not in table.column_names:
            there = ", ".join(map(repr, table.column_names))
            raise RunError(
                f"{place} has no column {self.column!r}; there are {there}: type "
                f"--set data.column={table.column_names[0]}"
            )
        return (text if isinstance(text, str) else "" for text in table[self.column])

    def _share_of(self, documents: Iterable[str], split: str) -> Iterable[str]:
        """The drawn documents for validation, the others for training."""
        every = list(documents)
        assert self.validation_share is not None
        count = max(1, round(self.validation_share * len(every)))
        drawn = set(np.random.default_rng(0).permutation(len(every))[:count].tolist())
        return [text for n, text in enumerate(every) if (n in drawn) == (split == "validation")]


def _inside(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES)


def _documents_of(file: Path, separator: str | None) -> Iterator[str]:
    """The documents of a text file, one after another."""
    lines: list[str] = []
    try:
        with file.open(encoding="utf-8") as text:
            for line in text:
                ends = line.strip() == separator if separator is not None else not line.strip()
                if not ends:
                    lines.append(line)
                elif lines:
                    yield "".join(lines).rstrip("\n")
                    lines = []
    except UnicodeDecodeError as error:
        raise RunError(
            f"{file} is not UTF-8: byte {error.start} is {error.object[error.start]:#x}"
        ) from None
    if lines:
        yield "".join(lines).rstrip("\n")


def _read(file: Path) -> Dataset:
    from datasets import load_dataset

    if file.stat().st_size == 0:
        raise RunError(f"{file} is empty")
    try:
        return load_dataset(_READERS[file.suffix], data_files=str(file), split="train")
    except Exception as error:
        # datasets wraps what its readers raise in classes that share no base but Exception.
        raise RunError(f"{file} cannot be read: {_last_line(error)}") from error


def _from_hub(name: str, config: str | None, split: str) -> Dataset:
    from datasets import load_dataset

    try:
        return load_dataset(name, config, split=split)
    except (ConnectionError, FileNotFoundError) as error:
        raise RunError(
            f"cannot load the data {name!r}: no file or folder here, and the hub cannot be reached "
            "or has no such data set; download it, or type --set data.path=PATH"
        ) from error
    except ValueError as error:
        raise RunError(f"cannot load the data {name!r}: {_last_line(error)}") from error


def _last_line(error: BaseException) -> str:
    """What the innermost error says, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__


@hookimpl
def kdcore_data() -> Sequence[type[Data]]:
    """The data that this plugin brings."""
    return [Text]
