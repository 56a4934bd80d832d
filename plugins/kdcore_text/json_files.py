"""JSON files of records: a list of them, or one on each line. What Arrow would make of them is not
asked: it guesses types, and over some files it ends the process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcore import RunError
from kdcore_text.plain import lines

_SHAPE = "a file of records is a list of them, or has one on each line"


@dataclass(frozen=True)
class Record:
    """One record. `where` names its file and its number, for messages."""

    values: Mapping[str, Any]
    where: str


class JsonFile:
    """The records of a file, read anew each time."""

    def __init__(self, path: Path) -> None:
        if not path.stat().st_size:
            raise RunError(f"{path} is empty")
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def count(self) -> int:
        """How many there are. It takes reading them."""
        return sum(1 for _ in self.read())

    def read(self) -> Iterator[Record]:
        """All of them, in order."""
        first = next((line for line in lines(self._path) if line.strip()), "")
        values = self._listed() if first.lstrip().startswith("[") else self._by_line()
        for value, where in values:
            if not isinstance(value, Mapping):
                raise RunError(f"{where} has the type {type(value).__name__}; {_SHAPE}")
            yield Record(value, where)

    def _listed(self) -> Iterator[tuple[Any, str]]:
        values: Sequence[Any] = _parsed("\n".join(lines(self._path)), str(self._path))
        for number, value in enumerate(values, 1):
            yield value, f"{self._path}: record {number}"

    def _by_line(self) -> Iterator[tuple[Any, str]]:
        filled = ((n, line) for n, line in enumerate(lines(self._path), 1) if line.strip())
        for number, (at, line) in enumerate(filled, 1):
            where = f"{self._path}: record {number} (line {at})"
            yield _parsed(line, where), where


class JsonColumn:
    """One column of a file's records, of text. A record without it has an empty text."""

    def __init__(self, file: JsonFile, column: str) -> None:
        self._file, self._column = file, column

    def count(self) -> int:
        """How many records there are."""
        return self._file.count()

    def read(self) -> Iterator[str]:
        """The text of every record. One of them must have it."""
        there: dict[str, None] = {}
        for record in self._file.read():
            there.update(dict.fromkeys(record.values))
            text = record.values.get(self._column)
            if text is not None and not isinstance(text, str):
                raise RunError(
                    f"{record.where}: the column {self._column!r} holds {type(text).__name__}, "
                    "and must hold text"
                )
            yield text or ""
        if self._column not in there:
            raise RunError(
                f"{self._file} has no column {self._column!r}; set column in [data]: it has "
                f"{', '.join(there) or 'none'}"
            )


def _parsed(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # half a character, or with the next one a whole
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise RunError(f"{where} has half a character, {half!r}: mend or remove it") from None
    except json.JSONDecodeError as error:
        said = f"{error.msg} at column {error.colno}" if error.lineno == 1 else str(error)
        raise RunError(f"{where} is no JSON: {said}; {_SHAPE}") from None
    except (ValueError, RecursionError) as error:  # a number of many digits, nesting without end
        raise RunError(f"{where} cannot be read: {error}") from None
