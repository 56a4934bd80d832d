"""JSON files of records: a list, one per line, or one after another over several lines.

Arrow's reader is not used: it guesses types, and crashes the process on some files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from kdcore import RunError
from kdcore_text.formats import ending_of
from kdcore_text.opening import lines
from kdcore_text.record import Record

_SHAPE = "a file of records is a list of them, or has one on each line"
_BY_LINE = (".jsonl", ".ndjson")
_BLANK = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class JsonFile:
    """The records of a file, read anew each time."""

    def __init__(self, path: Path) -> None:
        if not path.stat().st_size:
            raise RunError(f"{path} is empty")
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def count(self) -> int:
        """The number of records, found by reading them all."""
        return sum(1 for _ in self.read())

    def read(self) -> Iterator[Record]:
        """All records, in order."""
        for value, where in self._values():
            if not isinstance(value, Mapping):
                raise RunError(f"{where} has type {type(value).__name__}; {_SHAPE}")
            yield Record(value, where)

    def _values(self) -> Iterator[tuple[Any, str]]:
        first = next((line for line in lines(self._path) if line.strip()), "")
        if first.lstrip().startswith("["):
            return self._listed()
        over_lines = not _is_whole(first) and (
            ending_of(self._path) not in _BY_LINE or first.strip() == "{"
        )
        return self._over_lines() if over_lines else self._by_line()

    def _listed(self) -> Iterator[tuple[Any, str]]:
        values: Sequence[Any] = _parsed("\n".join(lines(self._path)), str(self._path))
        for number, value in enumerate(values, 1):
            yield value, f"{self._path}: record {number}"

    def _by_line(self) -> Iterator[tuple[Any, str]]:
        filled = ((n, line) for n, line in enumerate(lines(self._path), 1) if line.strip())
        for number, (at, line) in enumerate(filled, 1):
            where = f"{self._path}: record {number} (line {at})"
            yield _parsed(line, where), where

    def _over_lines(self) -> Iterator[tuple[Any, str]]:
        """Records over several lines each, as `json.dump(..., indent=2)` writes them."""
        text, end, line = "\n".join(lines(self._path)), 0, 1
        for number in count(1):
            begin = _begin(text, end)
            if begin == len(text):
                return
            line += text.count("\n", end, begin)
            where = f"{self._path}: record {number} (line {line})"
            try:
                value, end = _DECODER.raw_decode(text, begin)
                _check_characters(value, text[begin:end])
            except (ValueError, RecursionError) as error:
                raise _explained(error, where) from None
            line += text.count("\n", begin, end)
            yield value, where


def _begin(text: str, end: int) -> int:
    """The beginning of the next value."""
    found = _BLANK.match(text, end)
    assert found is not None
    return found.end()


def _is_whole(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
        _check_characters(value, text)
    except (ValueError, RecursionError) as error:
        raise _explained(error, where) from None
    return value


def _check_characters(value: Any, text: str) -> None:
    if "\\ud" in text.lower():  # half of a surrogate pair, or with the next one a whole
        json.dumps(value, ensure_ascii=False).encode()


def _explained(error: ValueError | RecursionError, where: str) -> RunError:
    """What is wrong with the JSON, in one sentence."""
    if isinstance(error, UnicodeEncodeError):
        half = error.object[error.start]
        return RunError(f"{where} has an unpaired surrogate, {half!r}: fix or remove it")
    if isinstance(error, json.JSONDecodeError):
        said = f"{error.msg} at column {error.colno}" if error.lineno == 1 else str(error)
        return RunError(f"{where} is not JSON: {said}; {_SHAPE}")
    # A number with too many digits, or too deep nesting.
    return RunError(f"{where} cannot be read: {error}")
