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
    """The rows of a split, each made when it is asked for.

    A row has `input_ids`, `document`, `offset` and `position`, int32 arrays of one length, and
    `labels` where the data knows them.
    """

    split: Split
    lengths: np.ndarray  # [rows] in tokens
    cut = 0  # documents that were longer than a row
    dropped = 0  # documents that could train nothing

    def row(self, index: int) -> Row:
        """The row at an index from 0 on."""
        raise NotImplementedError

    def some(self, indices: Sequence[int]) -> list[Row]:
        """The rows at these indices; made at once, where that is quicker."""
        return [self.row(index) for index in indices]

    def ids(self, places: np.ndarray) -> np.ndarray:
        """The ids at these indices, counted through all documents of the split, in any row or none.

        Rows that data made by itself have no documents behind them.
        """
        raise RunError(
            f"the {self.split.name} data hands over rows, and what was asked for needs whole "
            "documents"
        )

    def pieces(self) -> Pieces:
        """The pieces of documents that it is made of, where these are isolated from one another."""
        raise RunError(
            f"the {self.split.name} data hands over rows, and train.batch_documents needs whole "
            "documents: say train.batch in its place"
        )

    def laid_anew(self, pieces: Pieces) -> RowDataset:
        """Rows of the same documents that are made of these pieces instead."""
        raise NotImplementedError

    def columns(self) -> Iterable[Columns]:
        """Those of all documents, in order; nothing where they have none."""
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
    """The documents of a split that any row holds a piece of, in the split's order.

    They are drawn for a step by themselves, and laid in rows of their own.
    """

    def __init__(self, rows: RowDataset) -> None:
        self.rows, self.split, self._pieces = rows, rows.split, rows.pieces()
        self._order = np.lexsort((self._pieces.offset, self._pieces.document))
        begins = np.unique(self._pieces.document[self._order], return_index=True)[1]
        self._begins, self._counts = begins, np.diff(begins, append=len(self._order))

    def __len__(self) -> int:
        return len(self._begins)

    def subset(self, indices: Sequence[int] | np.ndarray) -> RowDataset:
        """All pieces of these documents, laid in rows as all documents are."""
        some = np.asarray(indices, np.int64)
        begins = self._begins[some].tolist()
        ends = (self._begins[some] + self._counts[some]).tolist()
        spans = [self._order[a:b] for a, b in zip(begins, ends, strict=True)]
        pieces = np.concatenate(spans) if spans else self._order[:0]
        return self.rows.laid_anew(packing.relaid(self._pieces, pieces))


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
    """Rows made of pieces of documents, the first of which has the number `first`."""

    def __init__(self, split: Split, store: TokenStore, pieces: Pieces, first: int = 0) -> None:
        self.split, self._store, self._pieces, self._first = split, store, pieces, first
        self.lengths = pieces.row_lengths()
        self._part, self._at = store.locate(pieces.document, pieces.offset)

    def pieces(self) -> Pieces:
        """Those of whole documents; rows that are cut across documents have none."""
        return self._pieces if self._pieces.isolated else super().pieces()

    def laid_anew(self, pieces: Pieces) -> RowDataset:
        """The store and everything else that is known of documents stays."""
        rows = copy(self)
        rows._pieces, rows.lengths = pieces, pieces.row_lengths()
        rows._part, rows._at = self._store.locate(pieces.document, pieces.offset)
        return rows

    def ids(self, places: np.ndarray) -> np.ndarray:
        """Looked up on disk."""
        return self._store.at(places)

    def row(self, index: int) -> Row:
        """As `some` makes it."""
        return self.some([index])[0]

    def some(self, indices: Sequence[int]) -> list[Row]:
        """The pieces of each row side by side, those of all rows looked up together."""
        pieces, rows = self._pieces, np.asarray(indices, np.int64)
        first, lengths = pieces.starts[rows], self.lengths[rows]
        counts = pieces.starts[rows + 1] - first
        some = first.repeat(counts) + _counted(counts)
        length = pieces.length[some]
        places = (self._part[some], self._at[some])
        within = _counted(length)  # each piece
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
        """As they are stored, whether a document is in a row or not."""
        return self._store.columns or ()


def _counted(lengths: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... in each run of these lengths, side by side, int32."""
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
    """The texts of a split, tokenised and laid in rows as `data` says.

    With `rows = "chunk"` the first cut is at the token `start`, after a short row of what lies
    before; with `shifts` each row begins later than that by a number of its own below `block`,
    which is drawn from it. Data that is fresh each epoch has its tokens held after the first call.
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
    """Rows of documents that are ids already, laid as `data` says.

    A document has `input_ids`, and `labels` (unshifted, -100: not trained) unless all of it is
    trained. They are kept on disk under `key`, which says everything that they were made of, and
    asked for only where there are none.
    """
    from kdcore.data.tokenized import store_documents

    check_block(data)
    return _rows_of(data, split, store_documents(data, split, documents, key), 0, "")


_held: WeakKeyDictionary[TextSource, dict[str, tuple[object, TokenStore]]] = WeakKeyDictionary()


def check_block(data: TextSource) -> None:
    """A row predicts something."""
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
    """`begins`: what each document begins with, to tell of the rows; None: they were told of."""
    if shifts is None:
        pieces = pack_lengths(data, store.lengths, start)
    else:
        pieces = packing.shifted_chunk(store.lengths, data.block, shifts)
    rows = PieceRows(Split(split, store.fingerprint(), store.lengths), store, pieces)
    if data.rows != "chunk":
        rows.cut = int((store.lengths > data.block).sum())
    rows.dropped = store.dropped
    if shifts is None:  # else documents between two rows are trained on in other epochs
        rows.dropped += len(store.lengths) - len(np.unique(pieces.document))
    if not len(rows):
        raise RunError(f"the {split} texts of data {data.name!r} are too short to train on")
    if begins is not None:
        _log_summary(data, rows, begins)
    return rows


def pack_lengths(data: TextSource, lengths: np.ndarray, start: int = 0) -> Pieces:
    """Documents of these lengths in rows as `data` says."""
    if data.rows == "pack":
        return packing.pack(lengths, data.block)
    if data.rows == "chunk":
        return packing.chunk(lengths, data.block, start)
    return packing.one(lengths, data.block, data.cut)


def _log_summary(data: TextSource, rows: RowDataset, begins: str) -> None:
    """One line on what became of the texts."""
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
