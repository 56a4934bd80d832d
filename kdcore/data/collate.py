"""Collation: rows -> micro-batches on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kdcore.data.batch import Batch, OnHost, Packing, Row, Split
from kdcore.data.columns import BatchColumns
from kdcore.errors import RunError

NOT_TRAINED = -100  # the label of ignored positions in Hugging Face


def micro_batches(rows: Sequence[Row], size: int, *, by_length: bool) -> list[list[int]]:
    """Group rows into micro-batches of `size`; at least one, possibly empty.

    The longest come first, together with rows of similar length: each micro-batch is padded to its
    own longest row.
    """
    places = list(range(len(rows)))
    if by_length:
        places.sort(key=lambda n: -len(rows[n]["input_ids"]))
    return [places[at : at + size] for at in range(0, max(1, len(rows)), size)]


@dataclass(frozen=True, eq=False)
class Collate:
    """Rows -> a batch on the device, right-padded to its longest row."""

    split: Split
    vocabulary: int
    device: torch.device

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """One micro-batch. Without rows, one empty row without labels."""
        arrays = _Arrays(rows or [{"input_ids": [0], "document": [-1], "offset": [-1]}])
        labels = arrays.labels = arrays.shifted_labels()
        self._check(max(arrays.ids.max(), labels.max()))
        mask = arrays.document >= 0
        # Without rows nothing is masked: fully masked attention may give NaN.
        packed, padded = arrays.restarts(), bool(rows) and not mask.all()
        packing = self._packing(arrays) if rows else None
        if packed:
            arrays.isolate_padding()
        # One array, as each transfer to a GPU takes time.
        ids, position, document, offset, shifted = self._move(arrays.together())
        valid = np.flatnonzero(labels != NOT_TRAINED)
        made = Batch(
            input_ids=ids,
            position_ids=position,
            attention_mask=self._move(mask.astype(np.int64)) if padded and not packed else None,
            document=document,
            offset=offset,
            labels=shifted.flatten(),
            valid=self._move(valid),
            vocabulary=self.vocabulary,
            split=self.split,
            packing=packing,
            columns=BatchColumns(rows or [{}], arrays.document, labels != NOT_TRAINED),
        )
        return made.known(
            OnHost(
                *map(np.ravel, (arrays.ids, arrays.position, arrays.document, arrays.offset, valid))
            )
        )

    def _packing(self, arrays: _Arrays) -> Packing:
        real = np.flatnonzero(arrays.document >= 0)
        starts = arrays.starts(real)
        lengths = np.diff(starts)
        return Packing(
            real=self._move(real) if len(real) < arrays.ids.size else None,
            lengths=tuple(lengths.tolist()),
            starts=self._move(starts.astype(np.int32)),
            longest=int(lengths.max()),
        )

    def _check(self, largest: int) -> None:
        if largest >= self.vocabulary:
            raise RunError(
                f"the {self.split.name} data has the token id {largest}, and student and "
                f"teacher share the ids below {self.vocabulary} only; use the model's tokenizer"
            )

    def _move(self, array: np.ndarray) -> torch.Tensor:
        return sent(array, self.device)


def sent(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array as a tensor on the device; the host does not wait for the transfer."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


def select_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some rows of a batch, in that order, without padding common to all of them.

    For teachers that read part of a batch. Position `t` of row `rows[n]` becomes `n * width + t`,
    where `width` is the result's `input_ids.shape[1]`. Never syncs the device, unless the batch was
    made by `replace`.
    """
    wanted, shape = np.asarray(rows, np.int64), tuple(batch.input_ids.shape)
    known = on_host(batch)
    each = (known.input_ids, known.position, known.document, known.offset)
    ids, position, document, offset = (one.reshape(shape)[wanted] for one in each)
    real = document >= 0
    width = int((np.arange(shape[1]) * real).max(initial=0)) + 1
    ids, position, document, offset = (one[:, :width] for one in (ids, position, document, offset))
    predicts = np.zeros(shape, bool)
    predicts.reshape(-1)[known.valid] = True
    valid = np.flatnonzero(predicts[wanted, :width])
    device = batch.valid.device
    places = sent(wanted, device)

    def cut(values: torch.Tensor) -> torch.Tensor:
        return values.view(shape)[places, :width]

    made = Batch(
        input_ids=cut(batch.input_ids),
        position_ids=cut(batch.position_ids),
        attention_mask=None if batch.attention_mask is None else cut(batch.attention_mask),
        document=cut(batch.document),
        offset=cut(batch.offset),
        labels=cut(batch.labels).flatten(),
        valid=sent(valid, device),
        vocabulary=batch.vocabulary,
        split=batch.split,
        packing=_packing_of(batch, known, wanted, document),
        columns=None if batch.columns is None else batch.columns.select(wanted.tolist(), width),
    )
    return made.known(OnHost(*map(np.ravel, (ids, position, document, offset, valid))))


def on_host(batch: Batch) -> OnHost:
    """The host copies of a batch; for one made by `replace`, copied from the device."""
    if batch.on_host is not None:
        return batch.on_host
    flat = (batch.input_ids, batch.position_ids, batch.document, batch.offset, batch.valid)
    return OnHost(*(each.flatten().cpu().numpy() for each in flat))


def pieces_of(batch: Batch) -> list[tuple[int, np.ndarray]]:
    """The isolated pieces of the rows: the flat position of each piece's first token, and its ids.

    Excludes padding. Never syncs the device, unless the batch was made by `replace`.
    """
    known, time = on_host(batch), batch.input_ids.shape[1]
    real = np.flatnonzero(known.document >= 0)
    apart = (np.diff(known.position[real]) != 1) | (np.diff(real // time) != 0)
    pieces = np.split(real, np.flatnonzero(apart) + 1)
    return [(int(each[0]), known.input_ids[each]) for each in pieces if len(each)]


def _packing_of(
    batch: Batch, known: OnHost, rows: np.ndarray, document: np.ndarray
) -> Packing | None:
    """The packing of rows with these documents [rows, width]."""
    if batch.packing is None:
        return None
    all_documents = known.document.reshape(tuple(batch.input_ids.shape))
    ends = np.cumsum((all_documents >= 0).sum(1))
    lengths = np.array(batch.packing.lengths, np.int64)
    row_of = np.searchsorted(ends, np.cumsum(lengths) - 1, side="right")
    some = np.concatenate([lengths[row_of == row] for row in rows])
    real, device = np.flatnonzero(document >= 0), batch.valid.device
    return Packing(
        real=sent(real, device) if len(real) < document.size else None,
        lengths=tuple(some.tolist()),
        starts=sent(np.concatenate([[0], np.cumsum(some)]).astype(np.int32), device),
        longest=int(some.max()),
    )


class _Arrays:
    """The arrays [rows, time] of a batch: rows left-aligned, padding at the right."""

    def __init__(self, rows: Sequence[Row]) -> None:
        lengths = np.array([len(row["input_ids"]) for row in rows])
        place = np.arange(lengths.max())
        self._filled = place < lengths[:, None]
        ids = [row["input_ids"] for row in rows]
        self.ids = self._padded(ids, 0)
        self.labels = self._padded(_each(rows, "labels", ids), NOT_TRAINED)
        self.document = self._padded([row["document"] for row in rows], -1)
        self.offset = self._padded([row["offset"] for row in rows], -1)
        places = [place[:length] for length in lengths]
        self.position = self._padded(_each(rows, "position", places), place)

    def _padded(self, values: Sequence[Any], padding: int | np.ndarray) -> np.ndarray:
        """The rows' values, with `padding` where a row has none."""
        padded = np.empty(self._filled.shape, np.int64)
        padded[:] = padding
        padded[self._filled] = np.concatenate(values)
        return padded

    def together(self) -> np.ndarray:
        """[5, rows, time]: ids, positions, documents, offsets, labels."""
        return np.stack([self.ids, self.position, self.document, self.offset, self.labels])

    def shifted_labels(self) -> np.ndarray:
        """Labels by position, shifted in this one place; -100 across document borders."""
        shifted = np.full_like(self.labels, NOT_TRAINED)
        follows = self.position[:, 1:] == self.position[:, :-1] + 1
        real = (self.document[:, 1:] >= 0) & (self.document[:, :-1] >= 0)
        shifted[:, :-1] = np.where(follows & real, self.labels[:, 1:], NOT_TRAINED)
        return shifted

    def restarts(self) -> bool:
        """Whether a row holds several isolated pieces."""
        real = self.document[:, 1:] >= 0
        return bool((real & (self.position[:, 1:] != self.position[:, :-1] + 1)).any())

    def starts(self, real: np.ndarray) -> np.ndarray:
        """Where pieces begin among these flat positions, and their number."""
        row, position = real // self.ids.shape[1], self.position.reshape(-1)[real]
        begins = np.flatnonzero((np.diff(position) != 1) | (np.diff(row) != 0)) + 1
        return np.concatenate([[0], begins, [len(real)]])

    def isolate_padding(self) -> None:
        """Give the padding of packed rows its own positions, so that it is one more piece."""
        padding = self.document < 0
        counted = np.cumsum(padding, axis=1) - 1
        self.position = np.where(padding, counted, self.position)


def _each(rows: Sequence[Row], key: str, default: Sequence[Any]) -> list[Any]:
    """Each row's values; the default where it has none."""
    found = [row.get(key) for row in rows]
    return [other if one is None else one for one, other in zip(found, default, strict=True)]
