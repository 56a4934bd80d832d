"""Collectives: gather and sum over processes, ordering of processes, detection of lost ones."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdcore.errors import KdcoreError, PluginError, ProcessLost
from kdcore.files import exception_chain

if TYPE_CHECKING:
    from accelerate import Accelerator

_POLLING = 0.1  # seconds

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


@contextmanager
def main_first(accelerator: Accelerator) -> Iterator[None]:
    """Run the block in the main process first, then in all others.

    Without a time limit: collectives time out, with NCCL after ten minutes, and tokenising a large
    corpus takes longer. The others continue even if the block fails in the main process.
    """
    if accelerator.num_processes == 1:
        yield
        return
    store = _store()
    turn = store.add(f"kdcore/turns/{accelerator.process_index}", 1)
    done = f"kdcore/done/{turn}"
    if accelerator.is_main_process:
        try:
            yield
        finally:
            store.set(done, b"1")
        return
    while not store.check([done]):  # not `wait`, which signals cannot interrupt
        time.sleep(_POLLING)
    yield


@contextmanager
def losses_told() -> Iterator[None]:
    """Raise ProcessLost instead of a collective's error if another process is gone."""
    try:
        yield
    except Exception as error:
        told = isinstance(error, KdcoreError) and not isinstance(error, PluginError)
        lost = next(filter(None, map(_lost, exception_chain(error))), None)
        if told or lost is None or not _is_among_others():
            raise
        raise ProcessLost(
            f"another process of the run has ended or does not answer ({lost}), and this one ends "
            "with it: that one says why. The same command continues from the last checkpoint"
        ) from error


def _lost(error: BaseException) -> str | None:
    found = _LOST.search(str(error)) if isinstance(error, RuntimeError) else None
    return found[0] if found else None


def _is_among_others() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _store() -> Any:
    """The store through which the processes found each other."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()
