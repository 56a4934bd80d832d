"""The rows of each step where the training data is a stream."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from sys import maxsize
from typing import Any

import numpy as np

from kdcore.ahead import Ahead
from kdcore.batch import Row, Split
from kdcore.batches import share
from kdcore.errors import RunError
from kdcore.rows import LaidRows
from kdcore.streams import Place, Stream


@dataclass(frozen=True)
class _Begin:
    """Where a window begins."""

    window: int = 0  # so many windows lie before it, in all epochs
    rows: int = 0  # and so many rows
    epoch: int = 0
    place: Place = field(default_factory=Place)  # in its epoch


class StreamedRows:
    """In the place of `TrainingRows`: windows of a stream, each in an order drawn from the seed.

    Steps are asked for in ascending order; what lies before the window that is held is found by
    laying its window again.
    """

    rows_in_epoch = None  # nobody knows

    def __init__(
        self,
        stream: Callable[[int], Stream],
        batch: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
        *,
        workers: int = 0,
    ) -> None:
        self._stream, self._batch, self._seed, self._workers = stream, batch, seed, workers
        self.mine = share(batch, process, processes)
        self._begins = [_Begin()]  # of the windows that are known, side by side
        self._held: tuple[_Begin, LaidRows, np.ndarray] | None = None

    @property
    def split(self) -> Split:
        """What the rows are cut from; its documents are not counted."""
        return self._stream(0).split

    def step(self, step: int) -> list[Row]:
        """This process's rows of a step, in their order in the step."""
        first = (step - 1) * self._batch
        return [self._row(first + n) for n in self.mine]

    def state(self, step: int) -> dict[str, Any]:
        """For a checkpoint after a step: where the window of the next row begins."""
        return asdict(self._known(step * self._batch))

    def go_on(self, state: Any) -> None:
        """Begin at what `state` gave."""
        self._begins = [_Begin(**{**state, "place": Place(**state["place"])})]
        self._held = None

    def _known(self, row: int) -> _Begin:
        """The last window that is known to begin at the row or before."""
        at = bisect_right([begin.rows for begin in self._begins], row) - 1
        return self._begins[max(at, 0)]

    def _row(self, row: int) -> Row:
        held = self._held
        if held is None or row < held[0].rows:
            wanted = self._known(row)
            windows = self._windows_from(wanted)
            self._coming = Ahead(lambda _: next(windows), maxsize, workers=self._workers)
            held = self._take(wanted.window)
        while row >= held[0].rows + len(held[1]):
            held = self._take(held[0].window + 1)
        begin, rows, order = held
        return rows[int(order[row - begin.rows])]

    def _take(self, window: int) -> tuple[_Begin, LaidRows, np.ndarray]:
        begin, rows, behind = self._coming.take(window)
        if behind.window > self._begins[-1].window:
            self._begins.append(behind)
        order = np.random.default_rng([self._seed, 0x57E4, window]).permutation(len(rows))
        self._held = (begin, rows, order)
        return self._held

    def _windows_from(self, begin: _Begin) -> Iterator[tuple[_Begin, LaidRows, _Begin]]:
        """The windows of this epoch from a place on, then those of all epochs after."""
        while True:
            before = begin
            for place, rows in self._stream(begin.epoch).windows(begin.place):
                behind = _Begin(begin.window + 1, begin.rows + len(rows), begin.epoch, place)
                yield begin, rows, behind
                begin = behind
            if begin.rows == before.rows and before.place == Place():
                raise RunError(f"the streamed {self.split.name} data has nothing to train on")
            begin = _Begin(begin.window, begin.rows, begin.epoch + 1)
