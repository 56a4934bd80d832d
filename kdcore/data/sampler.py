"""Sampling: which rows make up an optimizer step, with prefetching."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import groupby
from operator import itemgetter
from sys import maxsize
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from kdcore.data.batch import Row, Split
from kdcore.data.rows import RowDataset
from kdcore.data.streaming import Place, Stream
from kdcore.errors import RunError


class Order:
    """The rows of each optimizer step, as epoch and index."""

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
    """The contiguous share of `count` items that a process takes."""
    return range(count * process // processes, count * (process + 1) // processes)


def random_subset(rows: int, wanted: int, seed: int) -> np.ndarray:
    """`wanted` of `rows` indices, drawn without replacement by seed, in ascending order."""
    if wanted >= rows:
        return np.arange(rows)
    return np.sort(np.random.default_rng([seed, 0x0E7A1]).choice(rows, wanted, replace=False))


class Part(NamedTuple):
    """A process's rows of a step from one split, and the index of the first in the step."""

    split: Split
    rows: list[Row]
    first: int


class Drawable(Protocol):
    """What steps draw from: rows, or documents, which are packed into rows of their own."""

    split: Split

    def __len__(self) -> int: ...

    def subset(self, indices: list[int]) -> RowDataset:
        """The rows of the items with these numbers."""
        ...


class StepRows(NamedTuple):
    """A process's share of a step."""

    rows: list[Row]
    first: int  # index of its first row in the step
    of: int  # rows of the step, over all processes


def _shared(parts: list[RowDataset], process: int, processes: int) -> StepRows:
    """A process's share of rows that span several data sets in sequence."""
    count, rows, before = sum(map(len, parts)), list[Row](), 0
    mine = share(count, process, processes)
    for part in parts:
        here = range(max(mine.start - before, 0), min(mine.stop - before, len(part)))
        rows += part.some(list(here)) if here else []
        before += len(part)
    return StepRows(rows, mine.start, count)


class TrainingRows:
    """This process's rows in each step, for data that is fixed or fresh each epoch."""

    def __init__(
        self,
        of_epoch: Callable[[int], Drawable],
        order: Order,
        process: int,
        processes: int,
    ) -> None:
        self._of_epoch, self.order = of_epoch, order
        self._process, self._processes = process, processes
        self._held: tuple[int, Drawable] | None = None

    @property
    def split(self) -> Split:
        """The split of the rows."""
        return self._of_epoch(0).split

    def ends_epoch(self, step: int) -> bool:
        """Whether a step draws the last row of an epoch."""
        done, all_of_it = step * self.order.batch, self.order.rows
        return done // all_of_it > (done - self.order.batch) // all_of_it

    def state_dict(self, step: int) -> None:
        """Empty: the order is a function of the step."""

    def load_state_dict(self, state: None) -> None:
        """Nothing to restore."""

    def step(self, step: int) -> list[Row]:
        """This process's rows of a step, in order."""
        return self.share_of(step).rows

    def share_of(self, step: int) -> StepRows:
        """The same, with their position in the step."""
        by_epoch = groupby(self.order.step(step), key=itemgetter(0))
        parts = [self._some(epoch, [n for _, n in some]) for epoch, some in by_epoch]
        return _shared(parts, self._process, self._processes)

    def parts(self, step: int) -> list[Part]:
        """The same, by split."""
        rows, first, _ = self.share_of(step)
        return [Part(self.split, rows, first)]

    def _some(self, epoch: int, indices: list[int]) -> RowDataset:
        if self._held is None or self._held[0] != epoch:
            self._held = (epoch, self._of_epoch(epoch))
        drawn = self._held[1]
        # Data that is fresh each epoch may yield a slightly different number of rows.
        return drawn.subset([index % len(drawn) for index in indices])


@dataclass(frozen=True)
class _Begin:
    """The start of a window."""

    window: int = 0  # number of windows before it, in all epochs
    rows: int = 0  # number of rows, or of drawn documents, before it
    epoch: int = 0
    place: Place = field(default_factory=Place)  # its place in the epoch


class StreamedRows:
    """The streaming counterpart of `TrainingRows`: windows of a stream, each shuffled by the seed.

    Steps must be requested in ascending order. Rows before the current window are found by reading
    their window again.
    """

    def __init__(
        self,
        stream: Callable[[int], Stream],
        batch: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
        *,
        workers: int = 0,
        drawn: Callable[[RowDataset], Drawable] = lambda rows: rows,
    ) -> None:
        self._stream, self._batch, self._seed, self._workers = stream, batch, seed, workers
        self._process, self._processes, self._drawn = process, processes, drawn
        self._begins = [_Begin()]  # of known windows, consecutive
        self._held: tuple[_Begin, Drawable, np.ndarray] | None = None

    @property
    def split(self) -> Split:
        """The split of the rows; its documents are not counted."""
        return self._stream(0).split

    def step(self, step: int) -> list[Row]:
        """This process's rows of a step, in order."""
        return self.share_of(step).rows

    def share_of(self, step: int) -> StepRows:
        """The same, with their position in the step."""
        places = map(self._place, range((step - 1) * self._batch, step * self._batch))
        parts = [
            window.subset([index for _, index in some])
            for window, some in groupby(places, key=itemgetter(0))
        ]
        return _shared(parts, self._process, self._processes)

    def ends_epoch(self, step: int) -> bool:
        """Unknown for a stream."""
        return False

    def parts(self, step: int) -> list[Part]:
        """The same, by split."""
        rows, first, _ = self.share_of(step)
        return [Part(self.split, rows, first)]

    def state_dict(self, step: int) -> dict[str, Any]:
        """For a checkpoint after a step: the start of the window of the next row."""
        return asdict(self._known(step * self._batch))

    def load_state_dict(self, state: Any) -> None:
        """Resume from a checkpoint's state."""
        self._begins = [_Begin(**{**state, "place": Place(**state["place"])})]
        self._held = None

    def _known(self, row: int) -> _Begin:
        """The last known window that begins at the row or before it."""
        at = bisect_right([begin.rows for begin in self._begins], row) - 1
        return self._begins[max(at, 0)]

    def _place(self, row: int) -> tuple[Drawable, int]:
        """The row's window, and its index there."""
        held = self._held
        if held is None or row < held[0].rows:
            wanted = self._known(row)
            windows = self._windows_from(wanted)
            self._coming = Prefetcher(lambda _: next(windows), maxsize, workers=self._workers)
            held = self._take(wanted.window)
        while row >= held[0].rows + len(held[1]):
            held = self._take(held[0].window + 1)
        begin, rows, order = held
        return rows, int(order[row - begin.rows])

    def _take(self, window: int) -> tuple[_Begin, Drawable, np.ndarray]:
        begin, rows, behind = self._coming.get(window)
        if behind.window > self._begins[-1].window:
            self._begins.append(behind)
        order = np.random.default_rng([self._seed, 0x57E4, window]).permutation(len(rows))
        self._held = (begin, rows, order)
        return self._held

    def _windows_from(self, begin: _Begin) -> Iterator[tuple[_Begin, Drawable, _Begin]]:
        """The windows of this epoch from a place on, then those of all later epochs."""
        while True:
            before = begin
            for place, rows in self._stream(begin.epoch).windows(begin.place):
                drawn = self._drawn(rows)
                behind = _Begin(begin.window + 1, begin.rows + len(drawn), begin.epoch, place)
                yield begin, drawn, behind
                begin = behind
            if begin.rows == before.rows and before.place == Place():
                raise RunError(f"the streamed {self.split.name} data has nothing to train on")
            begin = _Begin(begin.window, begin.rows, begin.epoch + 1)


_Batches = TypeVar("_Batches")


class _Here:
    """An executor that computes in the calling thread, at once."""

    def submit(self, make: Callable[[int], _Batches], step: int) -> Future[_Batches]:
        made: Future[_Batches] = Future()
        try:
            made.set_result(make(step))
        except Exception as error:
            made.set_exception(error)
        return made


class Prefetcher(Generic[_Batches]):
    """Results of `make` for each step, computed one step ahead if there are workers.

    One thread is enough: rows come from a memory map, in the order of steps. `here`: also one step
    ahead, but in the calling thread, before it uses the results of a step.
    """

    def __init__(
        self, make: Callable[[int], _Batches], last: int, *, workers: int, here: bool = False
    ) -> None:
        self._make, self._last = make, last
        ahead = ThreadPoolExecutor(1, "kdcore-rows") if workers and not here else None
        self._pool = _Here() if here else ahead
        self._next: tuple[int, Future[_Batches]] | None = None

    def get(self, step: int) -> _Batches:
        """The batches of a step. Errors of their preparation are raised here."""
        coming, self._next = self._next, None
        taken = coming[1].result() if coming and coming[0] == step else self._make(step)
        if self._pool is not None and step < self._last:
            self._next = (step + 1, self._pool.submit(self._make, step + 1))
        return taken

    def clear(self) -> None:
        """Discard prepared batches; they are made again on demand."""
        if self._next is not None:
            self._next[1].exception()
        self._next = None
