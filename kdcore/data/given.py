"""Rows that a data component makes itself, counted or streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcore.data.batch import Row, Split
from kdcore.data.columns import labelled
from kdcore.data.rows import RowDataset
from kdcore.data.streaming import WINDOW, JoinedStream, Place, Stream, _from, _state_of
from kdcore.data.where import Columns, column_error
from kdcore.errors import PluginError, RunError
from kdcore.hashing import digest

if TYPE_CHECKING:
    from kdcore.data.batch import Rows


_ARRAYS = ("input_ids", "labels", "document", "offset", "position")
_KEYS = (*_ARRAYS, "columns")
_LEAST = {"labels": -100}  # minimum value; 0 for other keys
_MOST = 2**31 - 1


class GivenRows(RowDataset):
    """A sequence of rows of any type: lists, arrays, a `datasets.Dataset`."""

    def __init__(self, rows: Any, split: str, given_by: str, *, first: int = 0) -> None:
        if not len(rows):
            raise RunError(f"{given_by} has no rows in its {split!r} split")
        self._rows, self._where = rows, f"{given_by}: row {{}} of {split!r}"
        self._first = first  # number of the first row, in a stream
        self.lengths = np.empty(len(rows), np.int64)
        hashed, documents = digest(), dict[int, int]()
        for index in range(len(rows)):
            row = self.row(index)
            self.lengths[index] = len(row["input_ids"])
            for key, values in row.items():
                if key == "columns":  # not per token
                    continue
                hashed.update(f"{key} {len(values)} ".encode())
                hashed.update(values.data)
            for document, length in _documents(row):
                documents[document] = max(length, documents.get(document, 0))
        self.split = Split(split, hashed.hexdigest(), _dense(documents))

    def row(self, index: int) -> Row:
        """The row as arrays, with all missing keys filled in except `labels`."""
        given = self._rows[index]
        if not isinstance(given, Mapping):
            self._refuse(index, f"is a {type(given).__name__}, expected a mapping")
        unknown = sorted(str(key) for key in given if key not in _KEYS)
        if unknown:
            self._refuse(index, f"has the key {unknown[0]!r}; possible are {', '.join(_KEYS)}")
        if given.get("input_ids") is None:
            self._refuse(index, "has no 'input_ids'")
        keys = [key for key in _ARRAYS if given.get(key) is not None]
        row = self._complete(index, {key: self._array(index, key, given[key]) for key in keys})
        columns = given.get("columns")
        return row if columns is None else {**row, "columns": self._columns(index, columns, row)}

    def _columns(self, index: int, columns: Any, row: Row) -> Any:
        """The validated columns of the row, or of each of its documents."""
        alone = isinstance(columns, Mapping) or not isinstance(columns, Sequence)
        for each in [columns] if alone else columns:
            if problem := column_error(each):
                self._refuse(index, f"has {problem}")
        documents = len(np.unique(row["document"]))
        if not alone and len(columns) != documents:
            self._refuse(index, f"has {len(columns)} columns for {documents} documents")
        return columns

    def _array(self, index: int, key: str, values: Any) -> np.ndarray:
        array = np.asarray(values)
        if array.ndim != 1 or not len(array):
            shape = list(array.shape)
            self._refuse(index, f"has {key!r} of shape {shape}, expected at least one id")
        if array.dtype.kind not in "iu":
            self._refuse(index, f"has {key!r} of type {array.dtype}, expected whole numbers")
        least = _LEAST.get(key, 0)
        if array.min() < least or array.max() > _MOST:
            wrong = array[(array < least) | (array > _MOST)][0]
            self._refuse(index, f"has {wrong} in {key!r}; the least possible is {least}")
        return array.astype(np.int32)

    def _complete(self, index: int, row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        length = len(row["input_ids"])
        for key, array in row.items():
            if len(array) != length:
                self._refuse(index, f"has {len(array)} of {key!r} for {length} of 'input_ids'")
        if ("document" in row) != ("offset" in row):
            self._refuse(index, "has one of 'document' and 'offset', and needs both or neither")
        count = np.arange(length, dtype=np.int32)
        row.setdefault("position", count)
        row.setdefault("document", np.full(length, self._first + index, np.int32))
        row.setdefault("offset", count)
        return row

    def _refuse(self, index: int, problem: str) -> None:
        raise PluginError(f"{self._where.format(self._first + index)} {problem}")


def _documents(row: Row) -> Iterator[tuple[int, int]]:
    """Each document in a row, and the least length it can have."""
    borders = np.flatnonzero(np.diff(row["document"])) + 1
    for piece in np.split(np.arange(len(row["document"])), borders):
        yield int(row["document"][piece[0]]), int(row["offset"][piece].max()) + 1


def _dense(lengths: Mapping[int, int]) -> np.ndarray:
    dense = np.zeros(max(lengths) + 1, np.int64)
    dense[list(lengths)] = list(lengths.values())
    return dense


class GivenStream(Stream):
    """Rows that a data component streams; each call of `rows` starts again."""

    def __init__(
        self, rows: Callable[[], Iterable[Row]], split: str, fingerprint: str, given_by: str
    ) -> None:
        super().__init__(split, fingerprint)
        self._rows, self._given_by = rows, given_by

    def windows(self, start: Place) -> Iterator[tuple[Place, RowDataset]]:
        """Windows of this many rows."""
        rows = self._rows()
        coming, read = _from(rows, start), start.read
        while some := list(islice(coming, WINDOW)):
            window = GivenRows(some, self.split.name, self._given_by, first=read)
            window.split = self.split
            read += len(some)
            yield Place(read, read, _state_of(rows)), window


class JoinedRows(RowDataset):
    """Rows of several data sets, with documents numbered consecutively."""

    def __init__(
        self, split: str, members: Mapping[str, RowDataset], order: np.ndarray, column: str
    ) -> None:
        self._names, self._members = list(members), list(members.values())
        self._which, self._row = order.astype(np.int64).T
        self._column = column
        counts = [len(member.split.lengths) for member in self._members]
        self._first = np.concatenate([[0], np.cumsum(counts)])  # first document of each member
        lengths = np.concatenate([member.split.lengths for member in self._members])
        hashed = digest()
        for member in self._members:
            hashed.update(f"{member.split.fingerprint} ".encode())
            hashed.update(np.ascontiguousarray(member.lengths, np.int64).data)
        self.split = Split(split, hashed.hexdigest(), lengths)
        self.lengths = np.empty(len(order), np.int64)
        for n, member in enumerate(self._members):
            mine = self._which == n
            self.lengths[mine] = member.lengths[self._row[mine]]
        self.cut = sum(member.cut for member in self._members)
        self.dropped = sum(member.dropped for member in self._members)

    def row(self, index: int) -> Row:
        """A row, made by `some`."""
        return self.some([index])[0]

    def some(self, indices: Sequence[int]) -> list[Row]:
        """Rows, read together per member."""
        wanted = np.asarray(indices, np.int64)
        made: list[Row] = [{}] * len(wanted)
        for n, member in enumerate(self._members):
            mine = np.flatnonzero(self._which[wanted] == n)
            if not len(mine):
                continue
            rows = member.some(self._row[wanted[mine]].tolist())
            for place, row in zip(mine.tolist(), rows, strict=True):
                document = np.asarray(row["document"]) + np.int32(self._first[n])
                made[place] = labelled({**row, "document": document}, self._column, self._names[n])
        return made

    def ids(self, places: np.ndarray) -> np.ndarray:
        """Looked up in the member that holds them."""
        tokens = [int(member.split.lengths.sum()) for member in self._members]
        begins = np.concatenate([[0], np.cumsum(tokens)])
        which = np.searchsorted(begins, places, side="right") - 1
        found = np.empty(len(places), np.int32)
        for n, member in enumerate(self._members):
            found[which == n] = member.ids(places[which == n] - begins[n])
        return found

    def columns(self) -> Iterator[Columns]:
        """The columns of each member's documents, concatenated."""
        for name, member in zip(self._names, self._members, strict=True):
            mine: Columns = {self._column: name}
            count = 0
            for columns in member.columns():
                count += 1
                yield {**columns, **mine}
            if not count:  # the member has no columns
                yield from [mine] * len(member.split.lengths)


def join_rows(
    split: str, members: Mapping[str, Rows], order: np.ndarray, *, column: str
) -> RowDataset:
    """Rows of several data sets as one, with each document's data set name in a column.

    `order` [rows, 2] gives the member of each row and the index in it. Members must not be streams:
    `join_streams` is for those.
    """
    datasets = {
        name: as_rows(rows, split, given_by=f"member {name!r}") for name, rows in members.items()
    }
    return JoinedRows(split, datasets, order, column)


def join_streams(
    split: str,
    members: Mapping[str, Rows],
    choose: Callable[[], Iterator[int]],
    *,
    column: str,
    seed: Sequence[int],
    all_exhausted: bool = False,
    window: int = WINDOW,
) -> Stream:
    """Rows of several data sets as one stream, with each document's member name in a column.

    `choose` yields member indices, the same ones at each call; a resumed run continues where it
    was. The stream ends when a chosen member ends; with `all_exhausted`, when all have ended, and
    members that end before start again. Members that are not streams are read in a random order
    from `seed`, a new one in each pass.
    """
    datasets = {
        name: as_rows(rows, split, given_by=f"member {name!r}") for name, rows in members.items()
    }
    return JoinedStream(
        split,
        datasets,
        choose,
        column=column,
        all_exhausted=all_exhausted,
        seed=seed,
        window=window,
    )


def as_rows(
    rows: Rows, split: str, *, given_by: str = "the data", at_most: int | None = None
) -> RowDataset:
    """The result of `make_rows`, validated, hashed and completed.

    Without `document`, each row is one document. Without `position`, a row is one piece, with
    positions from 0. Streamed rows are read completely, or `at_most` this many; a `Stream` for
    training stays one.
    """
    from kdcore.data.streaming import Stream

    streamed = isinstance(rows, Stream)
    if isinstance(rows, RowDataset) and not (streamed and split != "train"):
        return rows
    if streamed or not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
        rows = list(islice(rows, at_most))
    return GivenRows(rows, split, given_by)
