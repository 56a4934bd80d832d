"""CSV and TSV files: a header line, then one record per line, or over several lines in quotes.

Cells stay text. A reader that guesses types would drop a text that is "NA", and would silently
shift cells where a comma is not quoted.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from kdcore import RunError
from kdcore_text.formats import DELIMITERS, ending_of
from kdcore_text.opening import whole_lines
from kdcore_text.record import Record

_PIECE = re.compile(r"[^\r]*\r\n?|[^\r]+")  # up to a carriage return, even a lone one
_DECLARED = re.compile(r'"?sep=(.)"?\r?\n?')  # Excel's first line


class CsvFile:
    """The records of a file, read anew each time. `column` must be among its columns."""

    def __init__(self, path: Path, column: str | None = None) -> None:
        if not path.stat().st_size:
            raise RunError(f"{path} is empty")
        self._path, self._column = path, column

    def __str__(self) -> str:
        return str(self._path)

    def count(self) -> int:
        """The number of records, found by reading them all."""
        return sum(1 for _ in self.read())

    def read(self) -> Iterator[Record]:
        """All records, in order."""
        delimiter = self._delimiter()
        rows = self._rows(delimiter)
        first = next(rows, None)
        if first is None:
            raise RunError(f"{self._path} has nothing but blank lines")
        names = self._names(first[1])
        if any(cell.startswith(" ") for cell in first[1][1:]):  # "id, text"
            rows = islice(self._rows(delimiter, spaced=True), 1, None)
        for number, (line, cells) in enumerate(rows, 1):
            where = f"{self._path}: record {number} (line {line})"
            if len(cells) != len(names):
                raise RunError(f"{where} {_wrong_count(len(cells), len(names), delimiter)}")
            yield Record(dict(zip(names, cells, strict=True)), where)

    def _names(self, cells: Sequence[str]) -> Sequence[str]:
        names = [cell.strip() for cell in cells]
        twice = [name for name in names if name and names.count(name) > 1]
        if twice:
            raise RunError(f"{self._path} has two columns {twice[0]!r} in its first line")
        return names

    def _rows(
        self, delimiter: str, *, strict: bool = True, spaced: bool = False
    ) -> Iterator[tuple[int, list[str]]]:
        """Each row with the number of its first line; blank lines are skipped.

        `spaced`: a space follows each delimiter.
        """
        csv.field_size_limit(sys.maxsize)  # process-wide; documents exceed the default of 128 kB
        lines = _pieces(self._path)
        skip = 1 if _DECLARED.fullmatch(next(_pieces(self._path), "")) else 0
        for _ in range(skip):
            next(lines)
        reader = csv.reader(lines, delimiter=delimiter, strict=strict, skipinitialspace=spaced)
        line = 1
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise RunError(f"{self._path}: line {line + skip}: {_said(error)}") from None
            if cells is None:
                return
            if cells:
                yield line + skip, cells
            line = reader.line_num + 1

    def _delimiter(self) -> str:
        """The declared delimiter, or the one with the most columns, the wanted one included."""
        declared = _DECLARED.fullmatch(next(_pieces(self._path), ""))
        if declared:
            return str(declared[1])
        usual = "\t" if ending_of(self._path) == ".tsv" else ","
        heads = {each: self._head(each) for each in [usual, *DELIMITERS]}
        having: list[str] = [each for each, head in heads.items() if self._column in head]
        return max(having or heads, key=lambda each: len(heads[each]))

    def _head(self, delimiter: str) -> Sequence[str]:
        _, cells = next(self._rows(delimiter, strict=False), (0, []))
        return [cell.strip() for cell in cells]


def _pieces(path: Path) -> Iterator[str]:
    """Lines, also where they end in a lone carriage return."""
    for line in whole_lines(path):
        if "\r" in line.rstrip("\r\n"):
            yield from _PIECE.findall(line)
        else:
            yield line


def _wrong_count(cells: int, names: int, delimiter: str) -> str:
    if cells < names:
        return f"has {cells} of the {names} cells that the first line names"
    return (
        f"has {cells} cells, and the first line names {names}: put cells that hold {delimiter!r} "
        "in quotes"
    )


def _said(error: csv.Error) -> str:
    if "unexpected end" in str(error):
        return "a quote that is opened there is never closed"
    return f"{error}; a quote inside a quoted cell is written twice"
