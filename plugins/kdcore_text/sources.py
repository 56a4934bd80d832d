"""Resolve a path to a file, a folder or a hub data set, and read it with a `Reader`."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from kdcore import RunError
from kdcore_text import tables
from kdcore_text.folders import choose, is_saved, named, says_its_files
from kdcore_text.formats import BINARY, Format, format_of
from kdcore_text.paths import absent, local, matches
from kdcore_text.source import Source

_Item = TypeVar("_Item")
_Given = TypeVar("_Given", covariant=True)


class Reader(Protocol[_Given]):
    """Makes documents of what a path refers to."""

    @property
    def forms(self) -> Collection[Format]:
        """The readable formats."""

    @property
    def format(self) -> Format | None:
        """The format of all files; None: by their endings."""

    @property
    def config(self) -> str | None:
        """The config of a data set."""

    @property
    def streaming(self) -> bool:
        """Whether data sets are streamed."""

    def file(self, path: Path, format: Format | None) -> Source[_Given]:
        """A file of text, JSON or CSV. None: unknown ending."""

    def table(self, table: tables.Table) -> Source[_Given]:
        """A data set of the library `datasets`."""


@dataclass(frozen=True)
class Several(Generic[_Item]):
    """Sources, one after another."""

    sources: Sequence[Source[_Item]]

    def count(self) -> int:
        """The sum over all of them."""
        return sum(source.count() for source in self.sources)

    def read(self) -> Iterator[_Item]:
        """Each to its end."""
        for source in self.sources:
            yield from source.read()


def source(
    paths: Sequence[str], split: str | None, reader: Reader[_Item], tell: Callable[[str], None]
) -> Several[_Item]:
    """The documents of a split. None: what `validation` names.

    `tell` receives a sentence on each folder of which files are left out.
    """
    return Several([each for path in paths for each in _sources(path, split, reader, tell)])


def _sources(
    path: str, split: str | None, reader: Reader[_Item], tell: Callable[[str], None]
) -> Sequence[Source[_Item]]:
    place, matching = local(path), matches(path)
    if matching:
        return _of_files(_of_pattern(path, matching, reader, tell), reader)
    if path and os.path.isfile(place):
        return _of_files([place], reader)
    if path and os.path.isdir(place):
        return _of_folder(place, split, reader, tell)
    problem = absent(path)
    if problem is not None:
        raise RunError(problem)
    name = split or "validation"
    return [reader.table(tables.of_hub(path, reader.config, name, streaming=reader.streaming))]


def _of_pattern(
    path: str, files: Sequence[Path], reader: Reader[_Item], tell: Callable[[str], None]
) -> Sequence[Path]:
    """Matching files with known endings; if there are none, all that match."""
    known = [file for file in files if format_of(file) in reader.forms]
    if reader.format is not None or not known:
        return files
    others = [file for file in files if file not in known]
    if others:
        tell(f"{path}: left out {named(others, Path())}")
    return known


def _of_folder(
    folder: Path, split: str | None, reader: Reader[_Item], tell: Callable[[str], None]
) -> Sequence[Source[_Item]]:
    if read_by_datasets(folder, split, reader):
        found = tables.of_folder(folder, reader.config, split, streaming=reader.streaming)
        return [reader.table(found)]
    chosen = choose(folder, split, reader.forms, reader.format)
    message = chosen.left_out_message(folder)
    if message is not None:
        tell(message)
    return _of_files(chosen.files, reader)


def read_by_datasets(folder: Path, split: str | None, reader: Reader[_Item]) -> bool:
    """Whether `datasets` has to read a folder: one it saved, one with a card, or a sliced split."""
    is_slice = split is not None and "[" in split
    return is_saved(folder) or says_its_files(folder) or reader.config is not None or is_slice


def _of_files(files: Sequence[Path], reader: Reader[_Item]) -> Sequence[Source[_Item]]:
    """One source per file; the files that Arrow reads form one source."""
    found = list[Source[_Item]]()
    for format, some in groupby(files, lambda file: reader.format or format_of(file)):
        if format is not None and format in BINARY:
            table = tables.of_files(format, list(some), streaming=reader.streaming)
            found.append(reader.table(table))
        else:
            found += [reader.file(file, format) for file in some]
    return found


def content(paths: Sequence[str]) -> str:
    """A hash of all local files, by name and content. Hub data is not included."""
    hashed = blake2b(digest_size=16)
    for path in paths:
        place = local(path)
        files = sorted(place.rglob("*")) if path and os.path.isdir(place) else [place]
        for file in [each for each in matches(path) or files if os.path.isfile(each)]:
            hashed.update(f"{file.name} {file.stat().st_size} ".encode())
            with file.open("rb") as opened:
                while some := opened.read(1 << 20):
                    hashed.update(some)
    return hashed.hexdigest()
