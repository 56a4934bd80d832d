"""Which rows make a step, and how rows become a batch.

A step takes exactly `batch` rows; epochs run into one another in orders drawn from (seed, epoch).
Processes take contiguous shares of a step, so that a token's place in the step does not depend on
how many processes there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kdcore.batch import Batch, Packing, Row, Split
from kdcore.errors import RunError

if TYPE_CHECKING:
    from kdcore.rows import LaidRows

NOT_TRAINED = -100  # what Hugging Face's labels say where nothing is learned


class Order:
    """The rows of each optimizer step, by epoch and index."""

    def __init__(self, rows: int, batch: int, seed: int) -> None:
        self.rows, self.batch, self.seed = rows, batch, seed
        self._drawn: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def step(self, step: int) -> list[tuple[int, int]]:
        """(epoch, row) of each row of a step; steps count from 1."""
        return [self._at(n) for n in range((step - 1) * self.batch, step * self.batch)]

    def _at(self, n: int) -> tuple[int, int]:
        epoch, index = divmod(n, self.rows)
        if self._drawn[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
            self._drawn = (epoch, order)
        return epoch, int(self._drawn[1][index])


def share(count: int, process: int, processes: int) -> range:
    """The contiguous share of `count` things that a process takes."""
    return range(count * process // processes, count * (process + 1) // processes)


def micro_batches(rows: Sequence[Row], size: int, *, by_length: bool) -> list[list[int]]:
    """Which rows go through the models together, `size` at a time; at least one, be it empty.

    The longest go first, together with those of nearly their length: each micro-batch is padded
    to its own longest row.
    """
    places = list(range(len(rows)))
    if by_length:
        places.sort(key=lambda n: -len(rows[n]["input_ids"]))
    return [places[at : at + size] for at in range(0, max(1, len(rows)), size)]


def drawn(rows: int, wanted: int, seed: int) -> np.ndarray:
    """`wanted` of `rows` indices, drawn once by seed, in ascending order."""
    if wanted >= rows:
        return np.arange(rows)
    return np.sort(np.random.default_rng([seed, 0x0E7A1]).choice(rows, wanted, replace=False))


class Collate:
    """Rows -> a batch on the device, padded at the right to its longest row."""

    def __init__(self, split: Split, vocabulary: int, device: torch.device) -> None:
        self.split, self.vocabulary, self.device = split, vocabulary, device

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """One micro-batch. Without rows, one empty row that trains nothing."""
        arrays = _Arrays(rows or [{"input_ids": [0], "document": [-1], "offset": [-1]}])
        labels = arrays.labels = arrays.shifted_labels()
        self._check(max(arrays.ids.max(), labels.max()))
        mask = arrays.document >= 0
        # Without rows nothing is masked: attention that sees nothing at all may give NaN.
        packed, padded = arrays.restarts(), bool(rows) and not mask.all()
        packing = self._packing(arrays) if rows else None
        if packed:
            arrays.isolate_padding()
        # One array, as each way to a GPU takes its time.
        ids, position, document, offset, shifted = self._move(arrays.together())
        return Batch(
            input_ids=ids,
            position_ids=position,
            attention_mask=self._move(mask.astype(np.int64)) if padded and not packed else None,
            document=document,
            offset=offset,
            labels=shifted.flatten(),
            valid=self._move(np.flatnonzero(labels != NOT_TRAINED)),
            vocabulary=self.vocabulary,
            split=self.split,
            packing=packing,
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
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor


class _Arrays:
    """The arrays [rows, time] of a batch: each row at the left, and padding behind it."""

    def __init__(self, rows: Sequence[Row]) -> None:
        lengths = np.array([len(row["input_ids"]) for row in rows])
        place = np.arange(lengths.max())
        self._filled = place < lengths[:, None]
        ids = [row["input_ids"] for row in rows]
        self.ids = self._laid(ids, 0)
        self.labels = self._laid(_each(rows, "labels", ids), NOT_TRAINED)
        self.document = self._laid([row["document"] for row in rows], -1)
        self.offset = self._laid([row["offset"] for row in rows], -1)
        places = [place[:length] for length in lengths]
        self.position = self._laid(_each(rows, "position", places), place)

    def _laid(self, values: Sequence[Any], padding: int | np.ndarray) -> np.ndarray:
        """The rows' values, and `padding` where a row has none."""
        laid = np.empty(self._filled.shape, np.int64)
        laid[:] = padding
        laid[self._filled] = np.concatenate(values)
        return laid

    def together(self) -> np.ndarray:
        """[5, rows, time]: ids, positions, documents, offsets, labels."""
        return np.stack([self.ids, self.position, self.document, self.offset, self.labels])

    def shifted_labels(self) -> np.ndarray:
        """The one shift: what each position predicts, -100 across the borders of documents."""
        shifted = np.full_like(self.labels, NOT_TRAINED)
        follows = self.position[:, 1:] == self.position[:, :-1] + 1
        real = (self.document[:, 1:] >= 0) & (self.document[:, :-1] >= 0)
        shifted[:, :-1] = np.where(follows & real, self.labels[:, 1:], NOT_TRAINED)
        return shifted

    def restarts(self) -> bool:
        """Whether some row holds several isolated pieces."""
        real = self.document[:, 1:] >= 0
        return bool((real & (self.position[:, 1:] != self.position[:, :-1] + 1)).any())

    def starts(self, real: np.ndarray) -> np.ndarray:
        """Where the pieces begin among these flat positions, and how many there are."""
        row, position = real // self.ids.shape[1], self.position.reshape(-1)[real]
        begins = np.flatnonzero((np.diff(position) != 1) | (np.diff(row) != 0)) + 1
        return np.concatenate([[0], begins, [len(real)]])

    def isolate_padding(self) -> None:
        """Give the padding of packed rows positions of its own, so that it is one more piece."""
        padding = self.document < 0
        counted = np.cumsum(padding, axis=1) - 1
        self.position = np.where(padding, counted, self.position)


def _each(rows: Sequence[Row], key: str, default: Sequence[Any]) -> list[Any]:
    """Each row's values; the default's where it has none."""
    found = [row.get(key) for row in rows]
    return [other if one is None else one for one, other in zip(found, default, strict=True)]


class TrainingRows:
    """The rows of this process in each step, whether the data is fresh each epoch or not."""

    def __init__(
        self, epoch_rows: Callable[[int], LaidRows], order: Order, process: int, processes: int
    ) -> None:
        self._epoch_rows, self.order = epoch_rows, order
        self.mine = share(order.batch, process, processes)
        self._held: tuple[int, LaidRows] | None = None

    @property
    def split(self) -> Split:
        """What the rows are cut from."""
        return self._epoch_rows(0).split

    @property
    def rows_in_epoch(self) -> int | None:
        """How many an epoch has, if that is known."""
        return self.order.rows

    def state(self, step: int) -> None:
        """For a checkpoint: the step says it all."""

    def go_on(self, state: None) -> None:
        """There is nothing to put back."""

    def step(self, step: int) -> list[Row]:
        """This process's rows of a step, in their order in the step."""
        places = self.order.step(step)[self.mine.start : self.mine.stop]
        by_epoch = groupby(places, key=itemgetter(0))
        return [row for epoch, some in by_epoch for row in self._some(epoch, [n for _, n in some])]

    def _some(self, epoch: int, indices: list[int]) -> list[Row]:
        if self._held is None or self._held[0] != epoch:
            self._held = (epoch, self._epoch_rows(epoch))
        rows = self._held[1]
        # Data that is fresh each epoch may lay a row more or fewer.
        return rows.some([index % len(rows) for index in indices])
