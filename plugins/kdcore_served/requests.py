"""Requests in threads of their own, in the order in which they were submitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar
from weakref import finalize

_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")


class Requests(Generic[_Asked, _Answer]):
    """Calls a function in several threads. A process that ends does not wait for them."""

    def __init__(self, ask: Callable[[_Asked], _Answer], threads: int) -> None:
        self._queue: SimpleQueue[tuple[Future[_Answer], _Asked] | None] = SimpleQueue()
        for _ in range(threads):
            Thread(target=_work, args=(self._queue, ask), name="kdcore-served", daemon=True).start()
        finalize(self, _end, self._queue, threads)

    def submit(self, asked: Sequence[_Asked]) -> list[Future[_Answer]]:
        """The answers to come."""
        futures: list[Future[_Answer]] = [Future() for _ in asked]
        for each in zip(futures, asked, strict=True):
            self._queue.put(each)
        return futures


def _work(
    queue: SimpleQueue[tuple[Future[_Answer], _Asked] | None], ask: Callable[[_Asked], _Answer]
) -> None:
    while (given := queue.get()) is not None:
        future, asked = given
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(ask(asked))
            except Exception as error:
                future.set_exception(error)
        del given, future  # the answer is freed before the next request comes


def _end(queue: SimpleQueue[Any], threads: int) -> None:
    for _ in range(threads):
        queue.put(None)


def answers(futures: Sequence[Future[_Answer]]) -> list[_Answer]:
    """All answers, in order. Raises the first error, and requests nothing more."""
    try:
        return [each.result() for each in futures]
    except BaseException:
        for each in futures:
            each.cancel()
        raise
