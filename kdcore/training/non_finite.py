"""Non-finite losses and gradients: detection, skipping or stopping, diagnosis."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kdcore.data.batch import Row
from kdcore.distributed import Total
from kdcore.errors import RunError
from kdcore.objective.readings import MicroBatch
from kdcore.objective.selection import SelectionResult, select
from kdcore.rng import RandomState
from kdcore.training.step import gradient_norm

if TYPE_CHECKING:
    from accelerate import Accelerator

    from kdcore.api.loss import Term
    from kdcore.training.step import TrainStep

_log = logging.getLogger("kdcore")


Found = tuple[int, RandomState]
"""A non-finite step, and the random state before it."""


class NonFiniteCheck:
    """Judges each step, and blocks the optimizer where loss or gradient is not finite.

    On a CPU, or with a loss scaler, the verdict is read at once: in fp16 the only sync of a step.
    On a GPU without a scaler, the optimizer's own kernels skip the update while `found_inf` is 1
    (made for loss scalers, and read on the GPU only), and verdicts are read with the log. With
    "stop", all steps after a bad one are blocked too, so that the state remains that before it;
    with "skip", only bad steps are.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        optimizer: torch.optim.Optimizer,
        total: Total,
        *,
        sticks: bool,
    ) -> None:
        self._accelerator, self._total, self._sticks = accelerator, total, sticks
        self._inner: Any = getattr(optimizer, "optimizer", optimizer)
        fused = all(group.get("fused") for group in self._inner.param_groups)
        on_gpu = accelerator.device.type == "cuda"
        self.deferred = on_gpu and accelerator.scaler is None and fused
        self.blocks = False  # whether the last step may not change the weights, if read at once
        self._good = torch.ones((), device=accelerator.device)
        self._judged: list[tuple[int, RandomState, Tensor]] = []

    def judge(
        self, step: int, norm: Tensor, shares: Sequence[Tensor], before: RandomState
    ) -> Tensor:
        """1 where the step may change the weights, else 0; from the values of all processes."""
        good = torch.cat([*shares, *self._judged_norm(norm)]).isfinite().all().float()
        if (processes := self._accelerator.num_processes) > 1:
            good = (self._total(good) == processes).float()
        self._good = torch.minimum(self._good, good) if self._sticks else good
        if self.deferred:
            self._inner.found_inf = 1 - self._good
        self.blocks = not self.deferred and not self._good
        if self.deferred or self.blocks:
            self._judged.append((step, before, good))
        return self._good

    def _judged_norm(self, norm: Tensor) -> list[Tensor]:
        """A loss scaler finds its scale by overflows, which are no errors while the scale is above
        1.
        """
        if (scaler := self._accelerator.scaler) is None:
            return [norm.reshape(1)]
        scale = scaler.scale(torch.ones_like(norm))  # `get_scale` would sync
        return [torch.where(scale >= 1, 0, norm).reshape(1)]

    def drain(self) -> list[Found]:
        """The bad steps since the last call. Syncs a GPU."""
        if not self._judged:
            return []
        flags = torch.stack([good for _, _, good in self._judged]).tolist()
        found = [each[:2] for each, good in zip(self._judged, flags, strict=True) if not good]
        self._judged = []
        return found


_FOLDER = "non_finite"
_SHOWN = 3  # rows shown in a message
_LETTERS = 160  # characters shown of a row's text


@dataclass(frozen=True)
class BadRow:
    """A row that is non-finite on its own."""

    place: int  # in the step, from 1
    document: int  # its first document
    terms: Mapping[str, str]  # the non-finite part of each term: "loss" or "gradient"
    text: str

    def __str__(self) -> str:
        what = ", ".join(f"{label}: {what}" for label, what in self.terms.items())
        return f"row {self.place} (document {self.document}; {what}): {self.text!r}"


def describe_bad_rows(trainer: TrainStep, step: int) -> str:
    """The non-finite rows and terms of a step, in words. Takes one forward pass per row."""
    rows = trainer.rows.share_of(step).of
    if trainer.run.shares_calls:
        return f"its {rows} rows are not tried one by one, as models are sharded"
    found = _bad_rows(trainer, step)
    if not found:
        return f"each of its {rows} rows is finite; only their sum is not"
    labels = dict.fromkeys(label for row in found for label in row.terms)
    shown = "".join(f"\n    {row}" for row in found[:_SHOWN])
    more = f"\n    and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{', '.join(labels)} in {len(found)} of its {rows} rows:{shown}{more}"


def dump_rows(trainer: TrainStep, step: int) -> Path:
    """Write this process's rows of a step for `load_rows`. Returns the path."""
    from safetensors.numpy import save_file

    run = trainer.run
    folder = run.folder / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    own = f"-process-{run.process}" if run.processes > 1 else ""
    rows = trainer.rows.step(step)
    keys = {key for row in rows for key in row if row[key] is not None} - {"columns"}
    arrays = {key: np.concatenate([_values(row, key) for row in rows]) for key in sorted(keys)}
    arrays["length"] = np.array([len(row["input_ids"]) for row in rows], np.int64)
    path = folder / f"step-{step}{own}.safetensors"
    save_file(arrays, path, {"step": str(step)})
    return path


def _values(row: Row, key: str) -> np.ndarray:
    """Where a row has no labels, its ids are the labels."""
    given = row.get(key)
    return np.asarray(row["input_ids"] if given is None else given, np.int64)


def load_rows(path: str | Path) -> list[Row]:
    """Load the rows of a non-finite step from the file that its run wrote."""
    from safetensors.numpy import load_file

    arrays = load_file(path)
    borders = np.cumsum(arrays.pop("length"))[:-1]
    pieces = {key: np.split(array, borders) for key, array in arrays.items()}
    return [dict(zip(pieces, row, strict=True)) for row in zip(*pieces.values(), strict=True)]


def _bad_rows(trainer: TrainStep, step: int) -> list[BadRow]:
    """The bad rows of all processes."""
    run, parts = trainer.run, trainer.rows.parts(step)
    rows = [row for part in parts for row in part.rows]
    first = parts[0].first
    readings = [
        trainer.reading(trainer.collated(part, [n]), [part.first + n])
        for part in parts
        for n in range(len(part.rows))
    ]
    readings = readings or [trainer.reading(trainer.collate([]), [first])]
    trainer.move_schedules(step - 1)
    terms = [term for term, _ in trainer.terms_of(step)]
    selection = select(run, readings, step, trainer.gather, trainer.total, terms)
    found = []
    for n, row in enumerate(rows):
        if bad := _bad_terms(trainer, readings[n], selection, n, step):
            text = str(run.tokenizer.decode(row["input_ids"]))[:_LETTERS]
            found.append(BadRow(first + n + 1, int(row["document"][0]), bad, text))
        readings[n].forget()
    if run.processes == 1:
        return found
    from accelerate.utils import gather_object

    gathered: list[BadRow] = gather_object(found)
    return gathered


def _bad_terms(
    trainer: TrainStep, reading: MicroBatch, selection: SelectionResult, n: int, step: int
) -> dict[str, str]:
    """The non-finite parts of one row: a term's loss, or else its gradient."""
    terms = trainer.terms_of(step)
    losses = _attempt(trainer, reading, terms, selection, n)[0].tolist()
    bad = {
        term.label: "loss"
        for (term, _), loss in zip(terms, losses, strict=True)
        if not math.isfinite(loss)
    }
    if bad or trainer.accelerator.scaler is not None:
        return bad
    for weighted in terms:
        if not _attempt(trainer, reading, [weighted], selection, n)[1].isfinite():
            bad[weighted[0].label] = "gradient"
    return bad


def _attempt(
    trainer: TrainStep,
    reading: MicroBatch,
    terms: Sequence[tuple[Term, float]],
    selection: SelectionResult,
    n: int,
) -> tuple[Tensor, Tensor]:
    """Forward and backward of a row: each term's part of the loss [terms], the gradient norm."""
    with trainer.accelerator.no_sync(trainer.wrapped), trainer.working_weights():
        shares = trainer.backward(reading, terms, selection.masks[n])
    norm = gradient_norm(trainer.objective)
    trainer.optimizer.zero_grad(set_to_none=True)
    return shares, norm


_IN_A_ROW = 10  # consecutive skipped steps after which the run cannot recover
_LOOKED_AT = 3  # skipped steps that are diagnosed by row, and whose rows are kept


class NonFiniteHandler:
    """Implements `train.non_finite`."""

    def __init__(self, trainer: TrainStep, save: Callable[[], None]) -> None:
        self._trainer, self._save = trainer, save
        self._skips = trainer.run.recipe.train.non_finite == "skip"
        self._skipped = 0
        self._last = (0, 0)  # the last skipped step, and how many in a row up to it
        self._finite: NonFiniteCheck | None = None

    @property
    def deferred(self) -> bool:
        """Whether verdicts stay on the GPU until they are read with the log."""
        return self._judge.deferred

    @deferred.setter
    def deferred(self, late: bool) -> None:
        self._judge.deferred = late

    @property
    def blocks(self) -> bool:
        """Whether the host knows that the last step may not change the weights."""
        return self._judge.blocks

    @property
    def _judge(self) -> NonFiniteCheck:
        if self._finite is None:
            trainer = self._trainer
            self._finite = NonFiniteCheck(
                trainer.accelerator, trainer.optimizer, trainer.total, sticks=not self._skips
            )
        return self._finite

    def judge(
        self, step: int, norm: Tensor, shares: Sequence[Tensor], before: RandomState
    ) -> Tensor:
        """1 where the step may change the weights, else 0."""
        return self._judge.judge(step, norm, shares, before)

    def check(self) -> None:
        """Handle the bad steps since the last call."""
        for found in self._judge.drain():
            if not self._skips:
                self._stop(*found)
            self._skip(found)

    def is_clean(self) -> bool:
        """Whether all steps so far were finite, for callers that cannot wait for the log."""
        return not self._judge.drain()

    def _stop(self, step: int, before: RandomState) -> None:
        """Save a checkpoint of the state before the step, and report what is wrong with it."""
        trainer, run = self._trainer, self._trainer.run
        run.step = step - 1
        why, path = self._why(step, before), dump_rows(trainer, step)
        before.restore()
        self._save()
        raise RunError(
            f"step {step} is not finite: {why}\n"
            f"The weights are those of step {run.step}, and its rows are in {path}. The same "
            "command repeats the step; --set train.non_finite=skip skips it, and a smaller "
            "train.lr may help"
        )

    def _skip(self, found: Found) -> None:
        step, before = found
        self._skipped += 1
        if (scaler := self._trainer.accelerator.scaler) is not None:
            scaler.update()  # a step of the optimizer would have: gradients are unscaled once
        behind, row = self._last
        self._last = (step, row + 1 if behind == step - 1 else 1)
        if self._last[1] == _IN_A_ROW:
            raise RunError(
                f"{_IN_A_ROW} steps in a row, the last of them {step}, are not finite: "
                f"{self._why(step, before)}\nThe student no longer learns; the last checkpoint is "
                "from before"
            )
        if self._skipped <= _LOOKED_AT:
            after = RandomState.capture()
            why, path = self._why(step, before), dump_rows(self._trainer, step)
            after.restore()
            _log.warning("step %d is not finite and was skipped: %s\nits rows: %s", step, why, path)
        else:
            _log.warning("step %d is not finite and was skipped", step)

    def _why(self, step: int, before: RandomState) -> str:
        before.restore()
        self._trainer.optimizer.zero_grad(set_to_none=True)
        return describe_bad_rows(self._trainer, step)
