"""What happens to steps whose loss or gradient is not finite: the run stops, or goes on without."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from kdcore.errors import RunError
from kdcore.finite import Finite, Found
from kdcore.random_state import RandomState
from kdcore.replay import keep_rows, told

if TYPE_CHECKING:
    from kdcore.train import Trainer

_log = logging.getLogger("kdcore")
_IN_A_ROW = 10  # skipped steps behind which nothing better will come
_LOOKED_AT = 3  # skipped steps that are looked at row by row, and whose rows are kept


class Refusals:
    """`train.non_finite` at work."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._skips = trainer.run.recipe.train.non_finite == "skip"
        self._skipped = 0
        self._last = (0, 0)  # the last skipped step, and how many came before it in a row
        self._finite: Finite | None = None

    @property
    def are_late(self) -> bool:
        """Whether a step is judged on the GPU, and known here when something is read."""
        return self._judge.is_late

    @are_late.setter
    def are_late(self, late: bool) -> None:
        self._judge.is_late = late

    @property
    def _judge(self) -> Finite:
        if self._finite is None:
            made = self._trainer
            self._finite = Finite(
                made.accelerator, made.optimizer, made.total, sticks=not self._skips
            )
        return self._finite

    def judge(
        self, step: int, norm: Tensor, shares: Sequence[Tensor], before: RandomState
    ) -> Tensor:
        """1 where the step may change the weights, else 0."""
        return self._judge.judge(step, norm, shares, before)

    def check(self) -> None:
        """Deal with what was found since the last time."""
        for found in self._judge.found():
            if not self._skips:
                self._stop(*found)
            self._skip(found)

    def found_nothing(self) -> bool:
        """Whether all steps so far were finite, for who cannot wait to deal with it."""
        return not self._judge.found()

    def _stop(self, step: int, before: RandomState) -> None:
        """Put the state before the step into a checkpoint, and tell what is wrong with the step."""
        trainer, run = self._trainer, self._trainer.run
        run.step = step - 1
        why, path = self._why(step, before), keep_rows(trainer, step)
        before.put_back()
        if run.step and not (trainer.checkpoints.folder / f"step-{run.step}").exists():
            trainer.save()
        raise RunError(
            f"step {step} is not finite: {why}\n"
            f"The weights are those of step {run.step}, and its rows are in {path}. The same "
            "command meets the step again; --set train.non_finite=skip goes on without it, a "
            "smaller train.lr may help too"
        )

    def _skip(self, found: Found) -> None:
        step, before = found
        self._skipped += 1
        behind, row = self._last
        self._last = (step, row + 1 if behind == step - 1 else 1)
        if self._last[1] == _IN_A_ROW:
            raise RunError(
                f"{_IN_A_ROW} steps in a row, the last of them {step}, are not finite: "
                f"{self._why(step, before)}\nNothing is learned any more; the last checkpoint is "
                "from before"
            )
        if self._skipped <= _LOOKED_AT:
            after = RandomState.now()
            why, path = self._why(step, before), keep_rows(self._trainer, step)
            after.put_back()
            _log.warning("step %d is not finite and was skipped: %s\nits rows: %s", step, why, path)
        else:
            _log.warning("step %d is not finite and was skipped", step)

    def _why(self, step: int, before: RandomState) -> str:
        before.put_back()
        self._trainer.optimizer.zero_grad(set_to_none=True)
        return told(self._trainer, step)
