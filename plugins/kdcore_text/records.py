"""Records: mappings of names to values, with the location of each for messages."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from kdcore import RunError
from kdcore_text.csv_files import CsvFile
from kdcore_text.formats import ENDINGS, TABLES, Format
from kdcore_text.json_files import JsonFile
from kdcore_text.record import Record
from kdcore_text.source import Source
from kdcore_text.tables import Table

__all__ = ["Record", "Records"]


@dataclass(frozen=True)
class Records:
    """Reads records from JSON, CSV and parquet files, and from local or hub data sets."""

    config: str | None
    format: Format | None = None
    streaming: bool = False

    @property
    def forms(self) -> Collection[Format]:
        """All except plain text."""
        return TABLES

    def file(self, path: Path, format: Format | None) -> Source[Record]:
        """A JSON or CSV file."""
        if format == "json":
            return JsonFile(path)
        if format == "csv":
            return CsvFile(path)
        endings = ", ".join(ending for ending, form in ENDINGS.items() if form in TABLES)
        raise RunError(
            f"cannot read records from {path}: files of records end in {endings}; rename it if it "
            "is one"
        )

    def table(self, table: Table) -> Source[Record]:
        """Its rows."""
        return _Numbered(table)


class _Numbered:
    def __init__(self, table: Table) -> None:
        self._table = table

    def count(self) -> int:
        return self._table.count()

    def read(self) -> Iterator[Record]:
        for number, row in enumerate(self._table.rows(), 1):
            yield Record(row, f"{self._table.place}: record {number}")
