"""When the device has too little memory: smaller micro-batches, and the same objective."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from kdcore.errors import KdcoreError, StartAgain
from kdcore.micro_batch import halved, keep_micro_batch, kept_micro_batch
from kdcore.random_state import RandomState

if TYPE_CHECKING:
    from kdcore.train import Trainer

_log = logging.getLogger("kdcore")
_Result = TypeVar("_Result")


class Memory:
    """Does things again with half the micro-batch, where there was not enough memory.

    Of several processes, the others wait in the midst of a step for the one that had too little:
    all of them end, the first one with a checkpoint of the step before, and start again.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._run = trainer, trainer.run

    def enough(self, before: RandomState, work: Callable[[], _Result]) -> _Result:
        """What `work` gives; nothing it did may be of consequence before it has returned."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError as error:
                said = str(error).splitlines()[0]
            except (RuntimeError, KdcoreError):  # a plugin may be blamed for a process that is gone
                if not self._is_told():
                    raise
                said = "in another process"
            # Here, where the error and all the tensors that hang on it are gone.
            self._trainer.optimizer.zero_grad(set_to_none=True)
            before.put_back()
            self._make_room(said)

    def _is_told(self) -> bool:
        """Whether it was another process that had too little, and has said so before it ended."""
        run = self._run
        return run.processes > 1 and kept_micro_batch(run, {}) < run.micro_batch

    def _make_room(self, said: str) -> None:
        run = self._run
        smaller = halved(run)
        if not smaller:
            raise torch.OutOfMemoryError(said)
        _log.warning(
            "out of memory after step %d: train.micro_batch is %d from here on, not %d (%s)",
            *(run.step, smaller, run.micro_batch, said),
        )
        if run.processes > 1:
            self._end(smaller)
        run.micro_batch = smaller
        self._trainer.ahead.forget()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _end(self, smaller: int) -> None:
        run, checkpoints = self._run, self._trainer.checkpoints
        keep_micro_batch(run, smaller)
        is_there = run.step == 0 or (checkpoints.folder / f"step-{run.step}").exists()
        if run.main and not is_there and self._trainer.refusals.found_nothing():
            self._trainer.recorder.count()
            checkpoints.save(run.step, self._trainer.state(), alone=True)
        raise StartAgain(
            f"a process ran out of memory after step {run.step}; with the same command all of them "
            f"start again, with train.micro_batch = {smaller}"
        )
