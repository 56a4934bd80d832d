"""Where a path leads: a file, a folder, or the hub. What is read there is the reader's business."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from kdcore import RunError
from kdcore_text import tables
from kdcore_text.json_files import JsonColumn, JsonFile
from kdcore_text.plain import PlainFiles

FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_WORDS = {"train": ("train",), "validation": ("valid", "dev"), "test": ("test",)}

_Item = TypeVar("_Item")
_Given = TypeVar("_Given", covariant=True)


class Source(Protocol[_Given]):
    """Documents that can be read again and again."""

    def count(self) -> int:
        """How many there are."""

    def read(self) -> Iterator[_Given]:
        """All of them, in order."""


class Reader(Protocol[_Given]):
    """Makes documents of what a path leads to."""

    def file(self, path: Path) -> Source[_Given]:
        """A file that is here."""

    def folder(self, path: Path, split: str | None) -> Source[_Given]:
        """A split of a folder that is here. None: of what was named for validation."""

    def hub(self, name: str, split: str) -> Source[_Given]:
        """A split of a data set on the hub."""


def source(paths: Sequence[str], split: str | None, reader: Reader[_Item]) -> Several[_Item]:
    """The documents of a split. None: of what was named for validation."""
    return Several([_one(path, split, reader) for path in paths])


def _one(path: str, split: str | None, reader: Reader[_Item]) -> Source[_Item]:
    place = local(path)
    if os.path.isfile(place):
        return reader.file(place)
    if os.path.isdir(place):
        return reader.folder(place, split)
    if _cannot_be_a_name(path):
        raise RunError(f"cannot read {path!r}: there is no such file or folder")
    return reader.hub(path, split or "validation")


@dataclass(frozen=True)
class Texts:
    """Reads text: plain files, and a column of tables."""

    config: str | None
    column: str
    separator: str | None
    streaming: bool = False

    def file(self, path: Path) -> Source[str]:
        """What is no table is plain text."""
        form = FORMATS.get(path.suffix)
        if form == "json":
            return JsonColumn(JsonFile(path), self.column)
        if form == "parquet":
            return tables.of_parquet(path, streaming=self.streaming).texts(self.column)
        return PlainFiles([path], self.separator)

    def folder(self, path: Path, split: str | None) -> Source[str]:
        """Plain files, where there are no tables anywhere in it."""
        plain = sorted(path.glob("*.txt"))
        if plain and not any(each for form in FORMATS for each in path.rglob(f"*{form}")):
            return PlainFiles(_of_split(plain, split, path), self.separator)
        table = tables.of_folder(path, self.config, split, streaming=self.streaming)
        return table.texts(self.column)

    def hub(self, name: str, split: str) -> Source[str]:
        """A column of a data set."""
        table = tables.of_hub(name, self.config, split, streaming=self.streaming)
        return table.texts(self.column)


class Several(Generic[_Item]):
    """Sources one after another."""

    def __init__(self, sources: Sequence[Source[_Item]]) -> None:
        self.sources = sources

    def count(self) -> int:
        """Of all of them."""
        return sum(source.count() for source in self.sources)

    def read(self) -> Iterator[_Item]:
        """Each to its end."""
        for source in self.sources:
            yield from source.read()


def _cannot_be_a_name(path: str) -> bool:
    """Whether this is no name on the hub: those have one slash at most, and no such endings."""
    ending = Path(path).suffix in {".txt", *FORMATS}
    return ending or path.startswith(("/", ".", "~")) or path.count("/") > 1


def local(path: str) -> Path:
    """A path of this machine, with `~` filled in."""
    return Path(os.path.expanduser(path))


def content(paths: Sequence[str]) -> str:
    """A hash of all files there are, by name and content. What is on the hub adds nothing."""
    hashed = blake2b(digest_size=16)
    for place in map(local, paths):
        files = sorted(place.rglob("*")) if os.path.isdir(place) else [place]
        for file in [each for each in files if os.path.isfile(each)]:
            hashed.update(f"{file.name} {file.stat().st_size} ".encode())
            with file.open("rb") as opened:
                while some := opened.read(1 << 20):
                    hashed.update(some)
    return hashed.hexdigest()


def _of_split(files: Sequence[Path], split: str | None, folder: Path) -> Sequence[Path]:
    """The files of a split, where their names tell one; else all."""
    if not any(_names(file, words) for file in files for words in _WORDS.values()):
        return files
    wanted = split or "validation"
    found = [file for file in files if _names(file, _WORDS.get(wanted, (wanted,)))]
    if found or split is None:
        return found or files
    there = ", ".join(file.name for file in files)
    raise RunError(
        f"cannot tell which files of {folder} are the split {wanted!r}: it has {there}; "
        "name files in [data] path and validation"
    )


def _names(file: Path, words: Sequence[str]) -> bool:
    return any(word in file.stem.lower() for word in words)
