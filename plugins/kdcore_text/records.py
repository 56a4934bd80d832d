"""Records: mappings of names to values, with the place that each comes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kdcore import RunError
from kdcore_text import tables
from kdcore_text.json_files import JsonFile, Record
from kdcore_text.sources import FORMATS, Source

__all__ = ["Record", "Records"]


@dataclass(frozen=True)
class Records:
    """Reads records from JSON, JSONL, parquet, data sets here and on the hub."""

    config: str | None

    def file(self, path: Path) -> Source[Record]:
        """A file, by its ending."""
        if path.suffix not in FORMATS:
            endings = ", ".join(FORMATS)
            raise RunError(f"cannot read records from {path}: files of records end in {endings}")
        if FORMATS[path.suffix] == "json":
            return JsonFile(path)
        return _Numbered(tables.of_parquet(path))

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
