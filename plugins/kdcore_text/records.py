"""Records: mappings of names to values, with the place that each comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcore import RunError
from kdcore_text import tables
from kdcore_text.plain import lines
from kdcore_text.sources import FORMATS, Source

_SHAPE = "a file of records is a list of them, or has one on each line"


@dataclass(frozen=True)
class Record:
    """One record. `where` names its file and its number, for messages."""

    values: Mapping[str, Any]
    where: str


@dataclass(frozen=True)
class Records:
    """Reads records from JSON, JSONL, parquet, data sets here and on the hub."""

    config: str | None

    def file(self, path: Path) -> Source[Record]:
        """A file, by its ending."""
        if path.suffix not in FORMATS:
            endings = ", ".join(FORMATS)
            raise RunError(f"cannot read records from {path}: files of records end in {endings}")
        if not path.stat().st_size:
            raise RunError(f"{path} is empty")
        if FORMATS[path.suffix] == "json":
            return _Json(path)
        return _Numbered(tables.of_file(path, FORMATS[path.suffix]))

    def folder(self, path: Path, split: str | None) -> Source[Record]:
        """A data set that is here."""
        return _Numbered(tables.of_folder(path, self.config, split))

    def hub(self, name: str, split: str) -> Source[Record]:
        """A data set on the hub."""
        return _Numbered(tables.of_hub(name, self.config, split))


class _Numbered:
    def __init__(self, table: tables.Table) -> None:
        self._table = table

    def count(self) -> int:
        return self._table.count()

    def read(self) -> Iterator[Record]:
        for number, row in enumerate(self._table.rows(), 1):
            yield Record(row, f"{self._table.place}: record {number}")


class _Json:
    """A list of records, or one record a line. What Arrow would make of them is not asked."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def count(self) -> int:
        return sum(1 for _ in self.read())

    def read(self) -> Iterator[Record]:
        first = next((line for line in lines(self._path) if line.strip()), "")
        values = self._listed() if first.lstrip().startswith("[") else self._by_line()
        for value, where in values:
            if not isinstance(value, Mapping):
                raise RunError(f"{where} has the type {type(value).__name__}; {_SHAPE}")
            yield Record(value, where)

    def _listed(self) -> Iterator[tuple[Any, str]]:
        try:
            values: Sequence[Any] = json.loads("\n".join(lines(self._path)))
        except json.JSONDecodeError as error:
            raise RunError(f"{self._path} is no JSON: {error}") from None
        for number, value in enumerate(values, 1):
            yield value, f"{self._path}: record {number}"

    def _by_line(self) -> Iterator[tuple[Any, str]]:
        filled = ((n, line) for n, line in enumerate(lines(self._path), 1) if line.strip())
        for number, (at, line) in enumerate(filled, 1):
            where = f"{self._path}: record {number} (line {at})"
            try:
                yield json.loads(line), where
            except json.JSONDecodeError as error:
                said = f"{error.msg} at column {error.colno}"
                raise RunError(f"{where} is no JSON: {said}; {_SHAPE}") from None
