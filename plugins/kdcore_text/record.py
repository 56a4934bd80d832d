"""A record: names and values, and the text in one of its columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from kdcore import RunError

_MOST = 20  # columns that a message names
_LONGEST = 40  # characters of a name in it: the first line of a file without a header is a text


@dataclass(frozen=True)
class Record:
    """One record. `where` names its file and its number, for messages."""

    values: Mapping[str, Any]
    where: str


class RecordFile(Protocol):
    """A file of records; as text it is its path."""

    def read(self) -> Iterator[Record]:
        """All of them, in order, from the file each time."""


class TextColumn:
    """One column of a file's records, of text. A record without it has an empty text."""

    def __init__(self, file: RecordFile, column: str) -> None:
        self._file, self._column = file, column

    def count(self) -> int:
        """How many records there are. It takes reading them."""
        return sum(1 for _ in self._file.read())

    def read(self) -> Iterator[str]:
        """The text of every record. One of them must have it, if there are any."""
        there, records = dict[str, None](), 0
        for record in self._file.read():
            records += 1
            there.update(dict.fromkeys(record.values))
            yield text_of(record.values.get(self._column), self._column, record.where)
        if records and self._column not in there:
            raise no_column(str(self._file), self._column, there)


def text_of(value: object, column: str, where: str) -> str:
    """The text in a column; nothing is an empty one."""
    if value is None or isinstance(value, str):
        return value or ""
    found = type(value).__name__
    turns = isinstance(value, list) and value and isinstance(value[0], Mapping)
    hint = '; use = "sft" reads dialogues' if turns else ""
    raise RunError(f"{where}: the column {column!r} holds {found}, and must hold text{hint}")


def no_column(place: str, column: str, there: Iterable[str]) -> RunError:
    """What to say where a table lacks the column."""
    names = [str(name) for name in there]
    shown = [f"{n[:_LONGEST]}..." if len(n) > _LONGEST else n for n in islice(names, _MOST)]
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return RunError(
        f"{place} has no column {column!r}; set column in [data]: it has "
        f"{', '.join(shown) or 'none'}{more}"
    )
