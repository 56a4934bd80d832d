"""Text of plain files, and of a column of tables."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdcore import RunError
from kdcore_text.csv_files import CsvFile
from kdcore_text.formats import ENDINGS, Format, check_is_text
from kdcore_text.json_files import JsonFile
from kdcore_text.opening import lines
from kdcore_text.record import Document, TextColumn
from kdcore_text.source import Source
from kdcore_text.tables import Table

_MARK = "<|endoftext|>"  # common separator of documents in such files


@dataclass(frozen=True)
class Texts:
    """Reads text. A `format` overrides the files' endings."""

    config: str | None
    column: str
    separator: str | None
    format: Format | None = None
    streaming: bool = False
    keep: Sequence[str] = ()  # columns kept with the text

    @property
    def forms(self) -> Collection[Format]:
        """All."""
        return set(ENDINGS.values())

    def file(self, path: Path, format: Format | None) -> Source[Document]:
        """Plain text, unless it is a table."""
        if format == "json":
            return TextColumn(JsonFile(path), self.column, self.keep)
        if format == "csv":
            return TextColumn(CsvFile(path, self.column), self.column, self.keep)
        if self.format is None:
            check_is_text(path, self.column)
        if self.keep:
            raise RunError(
                f"{path} is plain text and has no columns: leave keep_columns out of [data], or "
                "let records be read (JSON, CSV, parquet)"
            )
        return PlainFile(path, self.separator)

    def table(self, table: Table) -> Source[Document]:
        """A column of a table."""
        return table.texts(self.column, self.keep)


class PlainFile:
    """The documents of a text file."""

    def __init__(self, path: Path, separator: str | None) -> None:
        if not path.stat().st_size:
            raise RunError(f"{path} is empty")
        self._path, self._separator = path, separator

    def count(self) -> int:
        """The number of documents, found by reading them all."""
        return sum(1 for _ in self.read())

    def read(self) -> Iterator[str]:
        """The non-empty documents, without newlines around them."""
        document = list[str]()
        for line in lines(self._path):
            if self._separates(line):
                yield from _joined(document)
                document = []
            elif self._separator is None and line.strip() == _MARK:
                raise RunError(
                    f"{self._path} has lines that are {_MARK}, and documents are split at blank "
                    f'lines; set separator = "{_MARK}" in [data]'
                )
            else:
                document.append(line)
            if self._separator == "\n":
                yield from _joined(document)
                document = []
        yield from _joined(document)

    def _separates(self, line: str) -> bool:
        return not line.strip() if self._separator is None else line.strip() == self._separator


def _joined(lines: Sequence[str]) -> Iterator[str]:
    text = "\n".join(lines).strip("\n")
    if text.strip():
        yield text
