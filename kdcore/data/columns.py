"""Columns: metadata of a document next to its text, such as its domain. Read on the host."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, cast, overload

import numpy as np

from kdcore.data.where import FROM_DATA, SOURCE, Columns, Value, Where, matches, value_of
from kdcore.hashing import digest


def to_text(columns: Columns | None) -> str:
    """A document's columns in stored form: "" where it has none."""
    return json.dumps(columns, sort_keys=True) if columns else ""


@lru_cache(1 << 16)
def from_text(text: str) -> Columns:
    """The inverse of `to_text`. Documents with equal columns share one read-only result."""
    return cast(Columns, json.loads(text)) if text else {}


def fingerprint_of(columns: Iterable[Columns], names: Iterable[str]) -> str:
    """A hash of some columns of all documents, in order."""
    ordered, hashed = sorted(names), digest()
    for row in columns:
        values = [row.get(name) for name in ordered]
        hashed.update(f"{json.dumps(values)}\n".encode())
    return f"{', '.join(ordered)}: {hashed.hexdigest()}"


def values_of_column(columns: Iterable[Columns], name: str) -> list[Value]:
    """The values that documents have in a column, numbers before texts, in order."""
    known = {value_of(each, name) for each in columns}
    if name == SOURCE:
        known.add(FROM_DATA)
    values = [value for value in known if value is not None]
    return sorted(values, key=lambda value: (isinstance(value, str), value))


class StoredColumns:
    """The columns of each document in a store; `texts` holds results of `to_text`."""

    def __init__(self, texts: Any) -> None:
        self._texts = texts  # a list, or an Arrow string array

    def __getitem__(self, document: int) -> Columns:
        text = self._texts[document]
        return from_text(text if isinstance(text, str) else text.as_py())

    def __iter__(self) -> Iterator[Columns]:
        return (self[n] for n in range(len(self._texts)))

    def of(self, documents: np.ndarray) -> Sequence[Columns]:
        """The columns of some documents, each parsed on demand."""
        return _Some(self, documents)


def labelled(row: Mapping[str, Any], name: str, value: Value) -> Mapping[str, Any]:
    """A row with one more column for each document."""
    given = row.get("columns") or {}
    if isinstance(given, Mapping):
        return {**row, "columns": {**given, name: value}}
    return {**row, "columns": _Labelled(given, name, value)}


class _Labelled(Sequence[Columns]):
    def __init__(self, columns: Sequence[Columns], name: str, value: Value) -> None:
        self._columns, self._more = columns, {name: value}

    def __len__(self) -> int:
        return len(self._columns)

    @overload
    def __getitem__(self, index: int) -> Columns: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Columns]: ...
    def __getitem__(self, index: int | slice) -> Columns | Sequence[Columns]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        return {**self._columns[index], **self._more}


class _Some(Sequence[Columns]):
    def __init__(self, columns: StoredColumns, documents: np.ndarray) -> None:
        self._columns, self._documents = columns, documents

    def __len__(self) -> int:
        return len(self._documents)

    @overload
    def __getitem__(self, index: int) -> Columns: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Columns]: ...
    def __getitem__(self, index: int | slice) -> Columns | Sequence[Columns]:
        if isinstance(index, slice):
            return _Some(self._columns, self._documents[index])
        return self._columns[int(self._documents[index])]


def columns_at(row: Mapping[str, Any], place: int) -> Columns:
    """The columns of the document that a token of a row belongs to."""
    given = row.get("columns") or {}
    if isinstance(given, Mapping):
        return given
    found: Columns = given[int(_places(np.asarray(row["document"]))[place])]
    return found


class BatchColumns:
    """The columns of a batch's documents. Lazy."""

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], document: np.ndarray, predicts: np.ndarray
    ) -> None:
        """`document` [rows, time] is -1 on padding; `predicts` marks positions with a label."""
        self._rows, self._document, self._predicts = rows, document, predicts

    def select(self, rows: Sequence[int], width: int) -> BatchColumns:
        """The columns of some rows of the batch, cut to this many positions."""
        document, predicts = (each[list(rows), :width] for each in (self._document, self._predicts))
        return BatchColumns([self._rows[n] for n in rows], document, predicts)

    @cached_property
    def _slots(self) -> np.ndarray:
        """[rows * time]: the index in `_each` of each token's document."""
        slots, first = np.zeros(self._document.shape, np.int64), 0
        for n, document in enumerate(self._document):
            places = _places(document[document >= 0])
            slots[n, : len(places)] = first + places
            first += int(places.max(initial=-1)) + 1
        return slots.reshape(-1)

    @cached_property
    def _each(self) -> list[Columns]:
        """The columns of each document in each row, in the order in which they begin."""
        found = list[Columns]()
        for row, document in zip(self._rows, self._document, strict=True):
            count = int(_places(document[document >= 0]).max(initial=-1)) + 1
            given = row.get("columns") or {}
            found += [given] * count if isinstance(given, Mapping) else given
        return found or [{}]

    @cached_property
    def _predicted(self) -> np.ndarray:
        """[rows * time]: the slot of the token that a position predicts; its own without one."""
        following = np.append(self._slots[1:], self._slots[-1:])
        return np.where(self._predicts.reshape(-1), following, self._slots)

    def at(self, position: int) -> Columns:
        """The columns of the document of the token at a flat position."""
        return self._each[int(self._slots[position])]

    def matches(self, where: Where) -> np.ndarray:
        """Whether the document of the token that each flat position predicts matches, bool.

        A position without a label counts for its own document; padding never matches.
        """
        each = np.array([matches(columns, where) for columns in self._each])
        found: np.ndarray = each[self._predicted] & (self._document.reshape(-1) >= 0)
        return found

    def of_labels(self, key: str) -> np.ndarray:
        """Per-token values under a key of rows, for the token that each flat position predicts,
        float64.

        NaN where a row lacks the key, and where nothing is predicted.
        """
        found = np.full(self._document.shape, np.nan)
        for n, row in enumerate(self._rows):
            if row.get(key) is not None:
                given = np.asarray(row[key], np.float64)[1 : self._document.shape[1] + 1]
                found[n, : len(given)] = given
        return np.where(self._predicts.reshape(-1), found.reshape(-1), np.nan)

    def values(self, name: str) -> tuple[list[Value | None], np.ndarray]:
        """Each document's value, and for each flat position the index of its label's document."""
        return [value_of(columns, name) for columns in self._each], self._predicted


def _places(document: np.ndarray) -> np.ndarray:
    """The document index of each token, in the order in which documents begin."""
    known, first, inverse = np.unique(document, return_index=True, return_inverse=True)
    rank = np.empty(len(known), np.int64)
    rank[np.argsort(first)] = np.arange(len(known))
    return rank[inverse]
