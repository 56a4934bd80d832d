"""The next step's batches, prepared while this step runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

_Batches = TypeVar("_Batches")


class Ahead(Generic[_Batches]):
    """What `make` gives for each step, asked for one step early where there are workers.

    One thread is enough: rows are looked up in a memory map, and the order is that of the steps.
    """

    def __init__(self, make: Callable[[int], _Batches], last: int, *, workers: int) -> None:
        self._make, self._last = make, last
        self._pool = ThreadPoolExecutor(1, "kdcore-rows") if workers else None
        self._next: tuple[int, Future[_Batches]] | None = None

    def take(self, step: int) -> _Batches:
        """The batches of a step; what preparing them raised is raised here."""
        coming, self._next = self._next, None
        taken = coming[1].result() if coming and coming[0] == step else self._make(step)
        if self._pool is not None and step < self._last:
            self._next = (step + 1, self._pool.submit(self._make, step + 1))
        return taken

    def forget(self) -> None:
        """What was prepared is made again when it is asked for."""
        if self._next is not None:
            self._next[1].exception()
        self._next = None
