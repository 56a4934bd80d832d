"""Where a path leads: plain files, data sets here, or the hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from kdcore import RunError
from kdcore_text import tables
from kdcore_text.plain import PlainFiles

_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_WORDS = {"train": ("train",), "validation": ("valid", "dev"), "test": ("test",)}


class Source(Protocol):
    """Documents that can be read again and again."""

    def count(self) -> int:
        """How many there are."""

    def read(self) -> Iterator[str]:
        """All of them, in order."""


@dataclass(frozen=True)
class How:
    """How to read what a path leads to."""

    config: str | None
    column: str
    separator: str | None

    def source(self, paths: Sequence[str], split: str | None) -> Source:
        """The documents of a split. None: of what was named for validation."""
        return _Several([self._one(path, split) for path in paths])

    def _one(self, path: str, split: str | None) -> Source:
        place = local(path)
        if place.is_file():
            form = _FORMATS.get(place.suffix)
            if form is not None:
                return tables.of_file(place, form, self.column)
            return PlainFiles([place], self.separator)
        if place.is_dir():
            plain = sorted(place.glob("*.txt"))
            if plain and not any(each for form in _FORMATS for each in place.rglob(f"*{form}")):
                return PlainFiles(_of_split(plain, split, place), self.separator)
            return tables.of_folder(place, self.config, split, self.column)
        if _cannot_be_a_name(path):
            raise RunError(f"cannot read {path!r}: there is no such file or folder")
        return tables.of_hub(path, self.config, split or "validation", self.column)


class _Several:
    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def count(self) -> int:
        return sum(source.count() for source in self._sources)

    def read(self) -> Iterator[str]:
        for source in self._sources:
            yield from source.read()


def _cannot_be_a_name(path: str) -> bool:
    """Whether this is no name on the hub: those have one slash at most, and no such endings."""
    ending = Path(path).suffix in {".txt", *_FORMATS}
    return ending or path.startswith(("/", ".", "~")) or path.count("/") > 1


def local(path: str) -> Path:
    """A path of this machine, with `~` filled in."""
    return Path(path).expanduser()


def content(paths: Sequence[str]) -> str:
    """A hash of all files there are, by name and content. What is on the hub adds nothing."""
    hashed = blake2b(digest_size=16)
    for place in map(local, paths):
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        for file in [each for each in files if each.is_file()]:
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
