"""Rows of a split: a dataset over packed pieces of documents."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, overload
from weakref import WeakKeyDictionary

import numpy as np

from kdcore.data import packing
from kdcore.data.batch import Row, Split, TextSource
from kdcore.data.encoding import bos_of
from kdcore.data.packing import Pieces
from kdcore.data.tokenized import TokenStore, tokenise
from kdcore.data.where import Columns
from kdcore.errors import RunError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_log = logging.getLogger("kdcore")


class RowDataset(Sequence[Row]):
    """The rows of a split, made on demand.

    A row has `input_ids`, `document`, `offset` and `position`, int32 arrays of equal length, and
    `labels` if the data has them.
    """

    split: Split
    lengths: np.ndarray  # [rows] in tokens
    cut = 0  # documents longer than a row
    dropped = 0  # documents without a token to train on

    def row(self, index: int) -> Row:
        """The row at an index from 0."""
        raise NotImplementedError

    def some(self, indices: Sequence[int]) -> list[Row]:
        """The rows at these indices, read together where that is faster."""
        return [self.row(index) for index in indices]

    def ids(self, places: np.ndarray) -> np.ndarray:
        """The ids at these indices into all concatenated documents of the split.

        Rows made by the data itself have no underlying documents.
        """
        raise RunError(
            f"the {self.split.name} data provides rows, but whole documents are needed here"
        )

    def pieces(self) -> Pieces:
        """The pieces of documents that the rows consist of, if these are isolated."""
        raise RunError(
            f"the {self.split.name} data provides rows, but train.batch_documents needs whole "
            "documents: set train.batch instead"
        )

    def repacked(self, pieces: Pieces) -> RowDataset:
        """Rows of the same documents, made of these pieces instead."""
        raise NotImplementedError

    def columns(self) -> Iterable[Columns]:
        """The columns of all documents, in order; empty where there are none."""
        for row in self:
            given = row.get("columns") or {}
            yield from [given] if isinstance(given, Mapping) else given

    def subset(self, indices: Sequence[int] | np.ndarray) -> RowDataset:
        """Some of the rows, in that order."""
        return _Subset(self, np.asarray(indices, np.int64))

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> RowDataset: ...
    def __getitem__(self, index: int | slice) -> Row | RowDataset:
        if isinstance(index, slice):
            return self.subset(range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.row(index % len(self))


class Documents:
    """The documents of a split of which a row holds a piece, in the split's order.

    Steps draw them one by one, and pack them into rows of their own.
    """

    def __init__(self, rows: RowDataset) -> None:
        self.rows, self.split, self._pieces = rows, rows.split, rows.pieces()
        self._order = np.lexsort((self._pieces.offset, self._pieces.document))
        begins = np.unique(self._pieces.document[self._order], return_index=True)[1]
        self._begins, self._counts = begins, np.diff(begins, append=len(self._order))

    def __len__(self) -> int:
        return len(self._begins)

    def subset(self, indices: Sequence[int] | np.ndarray) -> RowDataset:
        """All pieces of these documents, packed into new rows."""
        some = np.asarray(indices, np.int64)
        begins = self._begins[some].tolist()
        ends = (self._begins[some] + self._counts[some]).tolist()
        spans = [self._order[a:b] for a, b in zip(begins, ends, strict=True)]
        pieces = np.concatenate(spans) if spans else self._order[:0]
        return self.rows.repacked(packing.repack(self._pieces, pieces))


class _Subset(RowDataset):
    def __init__(self, rows: RowDataset, indices: np.ndarray) -> None:
        self._rows, self._indices = rows, indices
        self.split, self.lengths = rows.split, rows.lengths[indices]

    def ids(self, places: np.ndarray) -> np.ndarray:
        return self._rows.ids(places)

    def row(self, index: int) -> Row:
        return self._rows.row(int(self._indices[index]))

    def some(self, indices: Sequence[int]) -> list[Row]:
        return self._rows.some(self._indices[indices].tolist())


class PieceRows(RowDataset):
    """Rows made of pieces of documents; the first document has the number `first`."""

    def __init__(self, split: Split, store: TokenStore, pieces: Pieces, first: int = 0) -> None:
        self.split, self._store, self._pieces, self._first = split, store, pieces, first
        self.lengths = pieces.row_lengths()
        self._part, self._at = store.locate(pieces.document, pieces.offset)

    def pieces(self) -> Pieces:
        """The pieces, for whole documents; none for rows that are cut across documents."""
        return self._pieces if self._pieces.isolated else super().pieces()

    def repacked(self, pieces: Pieces) -> RowDataset:
        """Keeps the store and all other data about documents."""
        rows = copy(self)
        rows._pieces, rows.lengths = pieces, pieces.row_lengths()
        rows._part, rows._at = self._store.locate(pieces.document, pieces.offset)
        return rows

    def ids(self, places: np.ndarray) -> np.ndarray:
        """Read from disk."""
        return self._store.at(places)

    def row(self, index: int) -> Row:
        """A row, made by `some`."""
        return self.some([index])[0]

    def some(self, indices: Sequence[int]) -> list[Row]:
        """The concatenated pieces of each row; reads those of all rows together."""
        pieces, rows = self._pieces, np.asarray(indices, np.int64)
        first, lengths = pieces.starts[rows], self.lengths[rows]
        counts = pieces.starts[rows + 1] - first
        some = first.repeat(counts) + _counted(counts)
        length = pieces.length[some]
        places = (self._part[some], self._at[some])
        within = _counted(length)  # of each piece
        found = {
            "input_ids": self._store.take(places, length),
            "document": (pieces.document[some] + self._first).repeat(length),
            "offset": pieces.offset[some].repeat(length) + within,
            "position": within if pieces.isolated else _counted(lengths),
            "labels": self._store.take_labels(places, length),
        }
        known = {key: array for key, array in found.items() if array is not None}
        ends = lengths.cumsum().tolist()
        made: list[Row] = [
            {key: array[end - length : end] for key, array in known.items()}
            for end, length in zip(ends, lengths.tolist(), strict=True)
        ]
        columns = self._store.columns
        if columns is None:
            return made
        whose = np.split(pieces.document[some], counts.cumsum()[:-1])
        return [{**row, "columns": columns.of(each)} for row, each in zip(made, whose, strict=True)]

    def columns(self) -> Iterable[Columns]:
        """In stored form, whether a document is in a row or not."""
        return self._store.columns or ()


def _counted(lengths: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... for each run of these lengths, concatenated, int32."""
    begins = lengths.cumsum(dtype=np.int32) - lengths
    place: np.ndarray = np.arange(lengths.sum(), dtype=np.int32)
    place -= begins.astype(np.int32).repeat(lengths)
    return place


def pack_texts(
    data: TextSource,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    start: int = 0,
    shifts: np.random.Generator | None = None,
) -> RowDataset:
    """Tokenise the texts of a split and arrange them in rows by the options of `data`.

    With `rows = "chunk"`, the first cut is at token `start`, after a short row with the tokens
    before it. With `shifts`, row i begins at a random token between i * block and (i + 1) * block.
    Data that is fresh each epoch keeps its tokens in memory after the first call.
    """
    check_block(data)
    held = _held.setdefault(data, {}) if data.fresh_each_epoch else {}
    known = held.get(split)
    if known is None or known[0] is not tokenizer:
        known = held[split] = (tokenizer, tokenise(data, split, tokenizer))
        begins = str(tokenizer.decode(bos_of(data, tokenizer)))
        return _rows_of(data, split, known[1], start, begins, shifts)
    return _rows_of(data, split, known[1], start, shifts=shifts)


def pack_documents(
    data: TextSource, split: str, documents: Callable[[], Iterable[Row]], *, key: str
) -> RowDataset:
    """Arrange documents of ids in rows by the options of `data`.

    A document has `input_ids`, and `labels` (unshifted, -100: ignored) unless all of it is trained
    on. They are cached on disk under `key`, which must identify everything they depend on, and are
    requested only where the cache has none.
    """
    from kdcore.data.tokenized import store_documents

    check_block(data)
    return _rows_of(data, split, store_documents(data, split, documents, key), 0, "")


_held: WeakKeyDictionary[TextSource, dict[str, tuple[object, TokenStore]]] = WeakKeyDictionary()


def check_block(data: TextSource) -> None:
    """A row must be able to predict something."""
    if data.block < 2:
        raise UsageError(f"[data] block = {data.block}: a row needs at least 2 tokens")


def _rows_of(
    data: TextSource,
    split: str,
    store: TokenStore,
    start: int,
    begins: str | None = None,
    shifts: np.random.Generator | None = None,
) -> RowDataset:
    """`begins`: the text at the start of each document, for the log; None: logged before."""
    if shifts is None:
        pieces = pack_lengths(data, store.lengths, start)
    else:
        pieces = packing.shifted_chunk(store.lengths, data.block, shifts)
    rows = PieceRows(Split(split, store.fingerprint(), store.lengths), store, pieces)
    if data.rows != "chunk":
        rows.cut = int((store.lengths > data.block).sum())
    rows.dropped = store.dropped
    if shifts is None:  # otherwise documents between two rows are used in other epochs
        rows.dropped += len(store.lengths) - len(np.unique(pieces.document))
    if not len(rows):
        raise RunError(f"the {split} texts of data {data.name!r} are too short to train on")
    if begins is not None:
        _log_summary(data, rows, begins)
    return rows


def pack_lengths(data: TextSource, lengths: np.ndarray, start: int = 0) -> Pieces:
    """Arrange documents of these lengths in rows by the options of `data`."""
    if data.rows == "pack":
        return packing.pack(lengths, data.block)
    if data.rows == "chunk":
        return packing.chunk(lengths, data.block, start)
    return packing.one(lengths, data.block, data.cut)


def _log_summary(data: TextSource, rows: RowDataset, begins: str) -> None:
    """Log one line about the rows."""
    tokens = int(rows.lengths.sum())
    said = (
        f"{rows.split.name}: {len(rows.split.lengths):,} documents, {tokens:,} tokens in "
        f"{len(rows):,} rows of at most {data.block}, {tokens / len(rows) / data.block:.1%} full"
    )
    if begins:
        said += f"; each begins with {begins!r}"
    if rows.cut:
        lossy = data.rows == "one" and data.cut != "split"
        how = f"at the {data.cut}" if lossy else "into pieces"
        said += f"; {rows.cut:,} longer ones were cut {how}"
    if rows.dropped:
        said += f"; {rows.dropped:,} empty ones were left out"
    _log.info(said)
