"""A record: names and values, with the text in one of its columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kdcore import RunError

_MOST = 20  # columns listed in a message
_LONGEST = 40  # characters of a name in it: without a header, the first line's "names" are texts


@dataclass(frozen=True)
class Record:
    """One record. `where` is its file and number, for messages."""

    values: Mapping[str, Any]
    where: str


class RecordFile(Protocol):
    """A file of records, printed as its path."""

    def read(self) -> Iterator[Record]:
        """All records, in order, read from the file each time."""


Document = str | Mapping[str, Any]
"""A text, or where columns are kept a mapping of `text` and `columns`."""


class TextColumn:
    """The text in one column of a file's records. A missing value is an empty text.

    With the columns to keep, if any.
    """

    def __init__(self, file: RecordFile, column: str, keep: Sequence[str] = ()) -> None:
        self._file, self._column, self._keep = file, column, keep

    def count(self) -> int:
        """The number of records, found by reading them all."""
        return sum(1 for _ in self._file.read())

    def read(self) -> Iterator[Document]:
        """The text of every record. At least one record must have the column, if there are any."""
        there, records = dict[str, None](), 0
        for record in self._file.read():
            records += 1
            there.update(dict.fromkeys(record.values))
            text = text_of(record.values.get(self._column), self._column, record.where)
            yield document_of(text, record.values, self._keep, record.where)
        if records and self._column not in there:
            hint = records_within(record.values) if records == 1 else ""
            raise no_column(str(self._file), self._column, there, hint)
        if records:
            check_kept(self._keep, there, str(self._file))


def text_of(value: object, column: str, where: str) -> str:
    """The text in a column; a missing value is an empty text."""
    if value is None or isinstance(value, str):
        return value or ""
    found = type(value).__name__
    turns = isinstance(value, list) and value and isinstance(value[0], Mapping)
    hint = '; use = "sft" reads dialogues' if turns else ""
    raise RunError(f"{where}: the column {column!r} holds {found}; it must hold text{hint}")


def document_of(text: str, values: Mapping[str, Any], keep: Sequence[str], where: str) -> Document:
    """A text with the kept columns, or alone if there are none."""
    return {"text": text, "columns": kept_of(values, keep, where)} if keep else text


def kept_of(values: Mapping[str, Any], keep: Sequence[str], where: str) -> dict[str, Any]:
    """A record's columns to keep, as far as it has them."""
    found = {name: values[name] for name in keep if values.get(name) is not None}
    for name, value in found.items():
        if not isinstance(value, str | int | float):
            kind = type(value).__name__
            raise RunError(
                f"{where}: the column {name!r} holds {kind}, and keep_columns in [data] keeps "
                "text and numbers"
            )
    return found


def check_kept(keep: Sequence[str], there: Iterable[str], place: str) -> None:
    """Reject columns that a file does not have."""
    names = [str(name) for name in there]
    for name in keep:
        if name not in names:
            raise RunError(
                f"{place} has no column {name!r}, which keep_columns in [data] names; it has "
                f"{shown_names(names)}"
            )


def refuse_own_columns(keep: Sequence[str]) -> None:
    """Reject columns that kdcore itself adds to every document."""
    if "source" in keep:
        raise ValueError(
            'source is kdcore\'s own column, which says who wrote a document ("data"): rename the '
            "column of the file"
        )


def shown_names(names: Sequence[str]) -> str:
    """Column names for a message, limited in number and length."""
    shown = [f"{n[:_LONGEST]}..." if len(n) > _LONGEST else n for n in names[:_MOST]]
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return f"{', '.join(shown) or 'none'}{more}"


def no_column(place: str, column: str, there: Iterable[str], hint: str = "") -> RunError:
    """The error message for a table without the column."""
    names = [str(name) for name in there]
    said = hint or f"; set column in [data]: it has {shown_names(names)}"
    return RunError(f"{place} has no column {column!r}{said}")


def records_within(values: Mapping[str, Any]) -> str:
    """What to do if a file is one object around its list of records; otherwise empty."""
    for name, value in values.items():
        if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            return (
                f"; its {name} is a list of records ({len(value):,}): save that list alone as a "
                "JSON file, or each of its records on a line"
            )
    return ""
