"""The loop: one optimizer step after another, with what is due between them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from kdcore.ahead import Ahead
from kdcore.batch import Row
from kdcore.batches import Collate, TrainingRows, micro_batches
from kdcore.checkpoint import Checkpoints
from kdcore.errors import Interrupted
from kdcore.evaluate import measured
from kdcore.gathering import over, total_of
from kdcore.gradient_shares import GradientShares, is_measured, lopsided
from kdcore.head import Values
from kdcore.memory import Memory
from kdcore.micro_batch import micro_batch_state
from kdcore.objective import Choose, Objective, Seen
from kdcore.random_state import RandomState
from kdcore.recorder import Recorder
from kdcore.refusals import Refusals
from kdcore.replay import gradient_norm
from kdcore.selecting import Choices, choose
from kdcore.streamed_rows import StreamedRows
from kdcore.tokens import Reading
from kdcore.training_rows import workers_of

_log = logging.getLogger("kdcore")

if TYPE_CHECKING:
    from accelerate import Accelerator

    from kdcore.options import Term
    from kdcore.plugins import Host
    from kdcore.run import Run
    from kdcore.signals import Signals


@dataclass(eq=False)
class Trainer:
    """Everything that a run needs to take steps."""

    run: Run
    host: Host
    accelerator: Accelerator
    objective: Objective
    wrapped: nn.Module  # the objective as DDP wraps it
    values: Callable[[Sequence[Term]], Values]
    optimizer: torch.optim.Optimizer
    rate: Callable[[int], float]
    rows: TrainingRows | StreamedRows
    checkpoints: Checkpoints
    signals: Signals

    def __post_init__(self) -> None:
        self.gather, self.total = over(self.accelerator), total_of(self.accelerator)
        self.modules = list(self.objective.modules())
        self.parameters = list(self.objective.parameters())
        self.recorder = Recorder(self.run, self.accelerator)
        self.refusals = Refusals(self)
        self.memory = Memory(self)
        self.watch: GradientShares | None = None
        self.told: set[str] = set()
        self.collate = Collate(self.rows.split, self.run.vocabulary, self.run.device)
        self.ahead = Ahead(self._readings, self.run.steps, workers=workers_of(self.run))

    def train(self) -> None:
        """From `run.step` to `run.steps`."""
        run, options = self.run, self.run.recipe.train
        if run.step == 0 and options.eval_first:
            self._evaluate()
        while run.step < run.steps:
            self.host.emit("kdcore_step_start", run=run, step=run.step + 1)
            self.step(run.step + 1)
            run.step += 1
            if not self.refusals.are_late:
                self.refusals.check()
            saving = self._due(options.save_every)
            if run.step % options.log_every == 0 or run.step == run.steps or saving:
                self._log()
            if self._due(options.eval_every):
                self._evaluate()
            if stop := self.signals.agreed(self.accelerator):
                self._stop(stop)
            if saving:
                self.save()

    def step(self, step: int) -> None:
        """One optimizer step on this process's rows."""
        if not all(module.training for module in self.modules):
            self.objective.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        before, terms = RandomState.now(), self.terms_of(step)
        shares, choices = self.memory.enough(before, lambda: self._gradients(step, terms))
        good = self.refusals.judge(step, self._clipped(), shares, before)
        if self.refusals.are_late or good:
            self._move()
        self._inner.zero_grad(set_to_none=True)
        watched, self.watch = self.watch, None
        squares = None if watched is None else watched.squares
        self.recorder.add([term for term, _ in terms], shares, choices, good, squares)

    @property
    def _inner(self) -> torch.optim.Optimizer:
        """The optimizer without what accelerate wraps around it."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _gradients(
        self, step: int, terms: Sequence[tuple[Term, float]]
    ) -> tuple[list[Tensor], Choices]:
        """Each micro-batch's shares of the loss, its gradients added up, and what was kept."""
        if is_measured(step, self.run.steps, len(terms)):
            self.watch = GradientShares(self.recorder.labels, self.run.device)
        readings = self.ahead.take(step)
        choices = choose(self.run, readings, step, self.gather, self.total)
        shares: list[Tensor] = []
        for n, reading in enumerate(readings):
            synced = n == len(readings) - 1
            with nullcontext() if synced else self.accelerator.no_sync(self.wrapped):
                shares.append(self.backward(reading, terms, choices.each[n]))
            reading.forget()
        return shares, choices

    def _move(self) -> None:
        """The optimizer's step. Accelerate's, as its clipping, looks for packages on the disk."""
        (self._inner if self.accelerator.scaler is None else self.optimizer).step()

    def _clipped(self) -> Tensor:
        """The gradient's norm before it was clipped."""
        clip = self.run.recipe.train.clip
        if not clip:
            return gradient_norm(self.objective)
        if self.accelerator.scaler is None:
            return nn.utils.clip_grad_norm_(self.parameters, clip)
        return self.accelerator.clip_grad_norm_(self.parameters, clip)  # type: ignore[no-any-return]

    def rehearse(self, rows: Sequence[Row]) -> None:
        """Forward and backward of one micro-batch as in a step, without taking the step."""
        reading = Reading(self.collate(rows), range(len(rows)))
        valid = torch.tensor(float(len(reading.batch.valid)), device=self.run.device)
        with self.accelerator.no_sync(self.wrapped):
            seen = Seen(None, valid, valid, valid)
            self.backward(reading, self.terms_of(1), lambda states: seen)
        self.optimizer.zero_grad(set_to_none=True)

    def _readings(self, step: int) -> list[Reading]:
        """This process's micro-batches of a step; one without tokens where it has no rows."""
        rows, first = self.rows.step(step), self.rows.mine.start
        # Micro-batches that rank by themselves are part of the experiment: rows as they were drawn.
        mixed = self.run.recipe.selection is not None and self.run.recipe.scope == "micro_batch"
        places = micro_batches(rows, self.run.micro_batch, by_length=not mixed)
        return [
            Reading(self.collate([rows[n] for n in some]), [first + n for n in some])
            for some in places
        ]

    def terms_of(self, step: int) -> list[tuple[Term, float]]:
        """The terms that count in this step, with their weights."""
        done = (step - 1) / self.run.steps
        weighted = [(term, term.weight_at(done)) for term in self.run.recipe.terms]
        # A step in which every weight is zero still runs, so that processes stay together.
        return [(term, weight) for term, weight in weighted if weight] or weighted[:1]

    def backward(
        self,
        reading: Reading,
        terms: Sequence[tuple[Term, float]],
        chosen: Choose,
    ) -> Tensor:
        """Adds a micro-batch's gradients; returns each term's share of the loss [terms]."""
        teacher = self.run.teacher
        asked = teacher is not None and any(term.loss.needs_teacher for term, _ in terms)
        logits_at = reading.logits_of(teacher) if asked and teacher is not None else None
        values = self.values([term for term, _ in terms])
        if self.watch is not None:
            values = self.watch.watched(values, [term for term, _ in terms])
        with self.run.autocast():
            loss, share = self.wrapped(reading.batch, terms, values, logits_at, chosen)
        if self.run.processes > 1:  # DDP averages their gradients; the loss is a sum over them
            loss = loss * self.run.processes
        loss.backward() if self.accelerator.scaler is None else self.accelerator.backward(loss)
        return share  # type: ignore[no-any-return]

    def _due(self, every: int | Literal["epoch"]) -> bool:
        """Whether something with this cadence is due after the step just done."""
        step, run = self.run.step, self.run
        if step == run.steps:
            return True
        if every != "epoch":
            return step % every == 0
        rows = self.rows.rows_in_epoch
        if rows is None:
            return False
        return step * run.batch // rows > (step - 1) * run.batch // rows

    def _log(self) -> None:
        self.refusals.check()
        self.recorder.count()
        if self.recorder.steps:
            record = self.recorder.record(self.rate(self.run.step))
            self.host.emit("kdcore_log", run=self.run, record=record)
            for label, said in lopsided(record.gradient, self.run.recipe.terms).items():
                if label not in self.told and self.run.main:
                    _log.warning(said)
                self.told.add(label)

    def _evaluate(self) -> None:
        self.refusals.check()
        self.recorder.count()
        with self.recorder.paused():
            before = RandomState.now()
            scores = self.run.scores = self.memory.enough(before, lambda: measured(self.run))
            if scores:
                self.host.emit("kdcore_scores", run=self.run, step=self.run.step, scores=scores)

    def _stop(self, signal_number: int) -> None:
        if self.run.step == self.run.steps:
            return
        self.save()
        raise Interrupted(
            f"interrupted after step {self.run.step} of {self.run.steps}; a checkpoint is "
            "written, and the same command continues",
            signal_number,
        )

    def state(self) -> dict[str, object]:
        """What a checkpoint holds besides weights, optimizer and what each process has."""
        rows = {"rows": self.rows.state(self.run.step)}
        return self.run.state() | micro_batch_state(self.run) | rows

    def save(self) -> None:
        """A checkpoint of the step that was done last."""
        self.refusals.check()
        run = self.run
        with self.recorder.paused():
            sums = self.recorder.state()
            path = self.checkpoints.save(run.step, self.state(), sums)
        self.host.emit("kdcore_checkpoint", run=run, step=run.step, path=path)
