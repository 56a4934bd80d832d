"""Gather and sum over processes, signs of life between them, detection of lost ones."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdcore.errors import KdcoreError, PluginError, ProcessLost
from kdcore.files import exception_chain

if TYPE_CHECKING:
    from accelerate import Accelerator

_SOON, _POLLING = 0.005, 0.1  # seconds: processes usually arrive together
_BEAT, _GONE = 5.0, 45.0  # seconds
_BEATS = "kdcore/beats/{}"

# Messages of gloo, NCCL and the store if a process has ended or does not respond.
_LOST = re.compile(
    r"connection (closed|reset) by peer|broken pipe|connection was likely closed|"
    r"remote process exited|timed out|connection refused",
    re.IGNORECASE,
)

Gather = Callable[[Tensor], tuple[Tensor, int]]
"""This process's values [n] -> those of all processes [N], and the index of this one's first."""

Total = Callable[[Tensor], Tensor]
"""A scalar of this process -> its sum over all processes, on the device."""


def alone(values: Tensor) -> tuple[Tensor, int]:
    """The gather of a single process."""
    return values, 0


def over(accelerator: Accelerator) -> Gather:
    """The gather over an accelerator's processes, which may have different numbers of values."""
    if accelerator.num_processes == 1:
        return alone

    def gather(values: Tensor) -> tuple[Tensor, int]:
        mine = torch.tensor([len(values)], device=values.device)
        counts: list[int] = accelerator.gather(mine).tolist()
        padded = values.new_zeros(max(counts))
        padded[: len(values)] = values
        rows = accelerator.gather(padded).view(len(counts), -1)
        everyone = torch.cat([row[:n] for row, n in zip(rows, counts, strict=True)])
        return everyone, sum(counts[: accelerator.process_index])

    return gather


def total_of(accelerator: Accelerator) -> Total:
    """The sum over an accelerator's processes."""
    if accelerator.num_processes == 1:
        return lambda value: value
    return lambda value: accelerator.reduce(value, "sum")


def heard(store: Any, key: str, rank: int) -> str:
    """What a process writes into the store, once it is there.

    Raises ProcessLost if that process is gone. Time in which this process is suspended itself does
    not count.
    """
    beats, silent, pause = -1, 0.0, _SOON
    while not store.check([key]):  # not `wait`, which signals cannot interrupt
        time.sleep(pause)
        silent, pause = silent + pause, min(2 * pause, _POLLING)
        if (now := store.add(_BEATS.format(rank), 0)) != beats:
            beats, silent = now, 0.0
        if silent > _GONE:
            raise _lost_because(f"process {rank} has been silent for {_GONE:.0f} seconds")
    return str(store.get(key).decode())


def start_beating(accelerator: Accelerator) -> None:
    """Show from now on that this process lives, to those that wait for it. Once in a process."""
    if accelerator.num_processes > 1:
        store, key = process_store(), _BEATS.format(accelerator.process_index)
        if store.add(key, 1) == 1:
            Thread(target=_beat, args=(store, key), daemon=True).start()


def _beat(store: Any, key: str) -> None:
    with suppress(RuntimeError):  # the group has ended, or the process that held the store
        while True:
            time.sleep(_BEAT)
            store.add(key, 1)


@contextmanager
def naming_lost() -> Iterator[None]:
    """Raise ProcessLost instead of a collective's error if another process is gone."""
    try:
        yield
    except Exception as error:
        is_reported = isinstance(error, KdcoreError) and not isinstance(error, PluginError)
        lost = next(filter(None, map(_lost, exception_chain(error))), None)
        if is_reported or lost is None or not _is_among_others():
            raise
        raise _lost_because(lost) from error


def _lost_because(why: str) -> ProcessLost:
    return ProcessLost(
        f"another process of the run has ended or does not answer ({why}), and this one ends "
        "with it: that one says why. The same command resumes from the last checkpoint"
    )


def announce(what: str) -> None:
    """Leave a word for the other processes, as far as that is still possible."""
    with suppress(RuntimeError, ValueError):
        process_store().set(f"kdcore/announced/{what}", b"1")


def was_announced(what: str) -> bool:
    """Whether another process announced it; False if that cannot be found out any more."""
    with suppress(RuntimeError, ValueError):
        return bool(process_store().check([f"kdcore/announced/{what}"]))
    return False


def _lost(error: BaseException) -> str | None:
    found = _LOST.search(str(error)) if isinstance(error, RuntimeError) else None
    return found[0] if found else None


def _is_among_others() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def process_store() -> Any:
    """The store through which the processes found each other."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()
