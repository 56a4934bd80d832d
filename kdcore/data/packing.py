"""Packing: document lengths -> pieces and rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

_WINDOW = 8192  # pieces that are packed together: bounds time, and keeps neighbours close
_LEAST = 2  # a row of one token predicts nothing
_Cuts = tuple[np.ndarray, np.ndarray, np.ndarray]  # document, offset, length


@dataclass(frozen=True, eq=False)
class Pieces:
    """Row r consists of pieces starts[r] to starts[r + 1], each cut from one document."""

    document: np.ndarray  # int32 [pieces]: index of the document
    offset: np.ndarray  # int32 [pieces]: where the piece begins in its document
    length: np.ndarray  # int32 [pieces]: tokens
    starts: np.ndarray  # int64 [rows + 1]: first piece of each row
    isolated: bool  # pieces do not attend to each other: positions restart at each
    block: int = 0  # tokens of rows that hold several pieces; 0: one piece per row

    def row_lengths(self) -> np.ndarray:
        """[rows] in tokens."""
        ends = np.concatenate([[0], np.cumsum(self.length, dtype=np.int64)])[self.starts]
        return np.diff(ends)


def pack(lengths: np.ndarray, block: int) -> Pieces:
    """Several whole documents per row, isolated; longer ones in isolated pieces of `block`."""
    document, offset, length = _cut(lengths, block)
    row = best_fit(length, block)
    order = np.argsort(row, kind="stable")
    return Pieces(document[order], offset[order], length[order], _starts(row[order]), True, block)


def repack(pieces: Pieces, some: np.ndarray) -> Pieces:
    """Some isolated pieces [n] in new rows, packed by the same rule."""
    row = best_fit(pieces.length[some], pieces.block) if pieces.block else np.arange(len(some))
    order = np.argsort(row, kind="stable")
    kept = some[order]
    cuts = pieces.document[kept], pieces.offset[kept], pieces.length[kept]
    return Pieces(*cuts, _starts(row[order]), True, pieces.block)


def chunk(lengths: np.ndarray, block: int, start: int = 0) -> Pieces:
    """Contiguous cuts of the concatenated documents.

    The first cut is at `start`, after a short row with the tokens before it.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    begins, total = ends - lengths, int(ends[-1]) if len(ends) else 0
    first = min(start, total) if start >= _LEAST else 0
    if (total - first) % block < _LEAST:
        total -= (total - first) % block
    if total < _LEAST:
        total = 0
    cuts = np.union1d([0], np.arange(first, total, block))
    begin = np.union1d(begins[begins < total], cuts[cuts < total])
    document = np.searchsorted(begins, begin, side="right") - 1
    length = np.diff(np.append(begin, total))
    offset = begin - begins[document]
    row = np.searchsorted(cuts, begin, side="right") - 1
    return Pieces(*_small(document, offset, length), _starts(row), False)


def shifted_chunk(lengths: np.ndarray, block: int, generator: np.random.Generator) -> Pieces:
    """Row i begins at a random token between i * block and (i + 1) * block - 1.

    Neighbouring rows overlap, or leave out the tokens between them; all rows are full.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    begins, total = ends - lengths, int(ends[-1]) if len(ends) else 0
    rows = max(total // block - 1, 0)
    begin = np.arange(rows) * block + generator.integers(block, size=rows)
    first = np.searchsorted(ends, begin, side="right")
    counts = np.searchsorted(ends, begin + block - 1, side="right") - first + 1
    starts = np.concatenate([[0], np.cumsum(counts)])
    document = first.repeat(counts) + np.arange(starts[-1]) - starts[:-1].repeat(counts)
    start = np.maximum(begins[document], begin.repeat(counts))
    length = np.minimum(ends[document], begin.repeat(counts) + block) - start
    return Pieces(*_small(document, start - begins[document], length), starts, False)


def one(lengths: np.ndarray, block: int, cut: Literal["left", "right", "split"]) -> Pieces:
    """One document per row. Longer ones are cut at that side, or split into several rows."""
    if cut == "split":
        document, offset, length = _cut(lengths, block)
    else:
        document, length = np.arange(len(lengths)), np.minimum(lengths, block)
        offset = lengths - length if cut == "left" else np.zeros_like(lengths)
    kept = length >= _LEAST
    document, offset, length = _small(document[kept], offset[kept], length[kept])
    return Pieces(document, offset, length, np.arange(len(document) + 1), True)


def best_fit(lengths: np.ndarray, block: int) -> np.ndarray:
    """The row of each piece, by best-fit decreasing: longest first, into the fullest row with room.

    Deterministic, and linear in the number of pieces, as each window is packed on its own.
    """
    row = np.empty(len(lengths), np.int64)
    rows = 0
    for start in range(0, len(lengths), _WINDOW):
        window = slice(start, start + _WINDOW)
        row[window], rows = _fit(lengths[window], block, rows)
    return row


def _fit(lengths: np.ndarray, block: int, rows: int) -> tuple[np.ndarray, int]:
    order = np.argsort(-lengths, kind="stable")
    row = np.empty(len(lengths), np.int64)
    with_room: dict[int, list[int]] = {}
    rooms = 0  # bit r: some row has room for r tokens; the best fit is the lowest after a shift
    for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            chosen = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            chosen, room, rows = rows, block, rows + 1
        row[index] = chosen
        if room > length:
            with_room.setdefault(room - length, []).append(chosen)
            rooms |= 1 << (room - length)
    return row, rows


def _cut(lengths: np.ndarray, block: int) -> _Cuts:
    """Each document in pieces of `block`, and a rest."""
    counts = -(-lengths // block)
    document = np.repeat(np.arange(len(lengths)), counts)
    first = np.cumsum(counts) - counts
    offset = (np.arange(len(document)) - first[document]) * block
    return _small(document, offset, np.minimum(block, lengths[document] - offset))


def _starts(row: np.ndarray) -> np.ndarray:
    """Ascending row numbers without gaps -> where each row begins, and the end."""
    rows = int(row[-1]) + 1 if len(row) else 0
    return np.searchsorted(row, np.arange(rows + 1))


def _small(document: np.ndarray, offset: np.ndarray, length: np.ndarray) -> _Cuts:
    return document.astype(np.int32), offset.astype(np.int32), length.astype(np.int32)
