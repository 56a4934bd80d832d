"""One function over many items, in several processes; results come in the order of the items."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from threading import Thread
from typing import Any, TypeVar

from kdcore.errors import RunError

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")
_AHEAD = 4  # items that a process is given before its first result is taken: bounds the memory
_work: Callable[[Any], Any]


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def in_order(
    work: Callable[[_Item], _Made], items: Iterable[_Item], processes: int
) -> Iterator[_Made]:
    """`work` of each item. Items and results are pickled, `work` is not: processes are forked."""
    if processes < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(work, items)
        return
    waiting: deque[Future[_Made]] = deque()
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _begin, (work,))
    try:
        for item in items:
            waiting.append(pool.submit(_done, item))
            if len(waiting) > _AHEAD * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise RunError(
            "one of the processes that make tokens was ended, perhaps for want of memory"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a process has one core
    Thread(target=_end_with_parent, daemon=True).start()


def _done(item: Any) -> Any:
    return _work(item)


def _end_with_parent() -> None:
    """A parent that is killed cannot tell its children."""
    if parent := multiprocessing.parent_process():
        wait([parent.sentinel])
        os._exit(1)
