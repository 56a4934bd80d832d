"""The gradients of one optimizer step: rows, teachers, selection, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdcore.api.options import schedules_in
from kdcore.data.batch import Batch, Row
from kdcore.data.collate import Collate, micro_batches
from kdcore.data.sampler import Part, Prefetcher, StreamedRows, TrainingRows
from kdcore.distributed import over, total_of
from kdcore.objective.chunked_loss import Values
from kdcore.objective.gradient_shares import GradientShares, is_measured
from kdcore.objective.hidden_states import compares_states, states_wanted
from kdcore.objective.losses import asks_teacher
from kdcore.objective.objective import Objective, SelectFn, TokenMask
from kdcore.objective.readings import MicroBatch
from kdcore.objective.selection import SelectionResult, select
from kdcore.training.rollout_rows import RolloutRows
from kdcore.training.run_state import workers_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from kdcore.api.contracts import Term
    from kdcore.training.run_state import RunState


def gradient_norm(module: torch.nn.Module) -> Tensor:
    """Of all parameters' gradients together, without reading it."""
    return torch.nn.utils.get_total_norm(
        [p.grad for p in module.parameters() if p.grad is not None]
    )


@dataclass(eq=False, kw_only=True)
class TrainStep:
    """What it takes to compute the gradients of an optimizer step, and to apply them."""

    run: RunState
    accelerator: Accelerator
    objective: Objective
    wrapped: nn.Module  # the objective as DDP wraps it
    values: Callable[[Sequence[Term]], Values]
    optimizer: torch.optim.Optimizer
    rows: TrainingRows | StreamedRows | RolloutRows

    def __post_init__(self) -> None:
        self.gather, self.total = over(self.accelerator), total_of(self.accelerator)
        self.modules = list(self.objective.modules())
        self.parameters = list(self.objective.model.parameters())
        self.learned = list(self.objective.learned.parameters())
        self.watch: GradientShares | None = None
        self.schedules = schedules_in(self.run.recipe.components())
        for schedule in self.schedules:
            schedule.begin(self.run.device)
        self.collate = Collate(self.rows.split, self.run.vocabulary, self.run.device)
        self.rollouts = self.rows if isinstance(self.rows, RolloutRows) else None
        # Never ahead: what is written hangs on the weights.
        workers = 0 if self.rollouts is not None else workers_of(self.run)
        self.prefetcher = Prefetcher(self._readings, self.run.steps, workers=workers)

    def gradients(
        self, step: int, terms: Sequence[tuple[Term, float]]
    ) -> tuple[list[Tensor], SelectionResult]:
        """Each micro-batch's shares of the loss, its gradients added up, and what was kept."""
        plain = [term for term, _ in terms if not compares_states(term)]
        if is_measured(step, self.run.steps, len(plain)):
            self.watch = GradientShares(
                [term.label for term in self.run.recipe.terms], self.run.device
            )
        self.move_schedules(step - 1)
        readings = self.prefetcher.get(step)
        choices = select(
            self.run, readings, step, self.gather, self.total, [term for term, _ in terms]
        )
        shares: list[Tensor] = []
        for n, reading in enumerate(readings):
            synced = n == len(readings) - 1
            with nullcontext() if synced else self.accelerator.no_sync(self.wrapped):
                shares.append(self.backward(reading, terms, choices.each[n]))
            reading.forget()
        return shares, choices

    def move_schedules(self, done: int) -> None:
        """Let scheduled options stand where they are when so many steps are done."""
        for schedule in self.schedules:
            schedule.move(done / self.run.steps)

    def _readings(self, step: int) -> list[MicroBatch]:
        """This process's micro-batches of a step; one without tokens where it has no rows."""
        # Micro-batches that rank by themselves are part of the experiment: rows as they were drawn.
        mixed = self.run.recipe.selection is not None and self.run.recipe.scope == "micro_batch"
        parts = self.rows.parts(step)
        return [
            self.reading(self.collated(part, some), [part.first + n for n in some])
            for part in [part for part in parts if part.rows] or parts[:1]
            for some in micro_batches(part.rows, self.run.micro_batch, by_length=not mixed)
        ]

    def reading(self, batch: Batch, rows: Sequence[int]) -> MicroBatch:
        """A micro-batch of rows at these places of the step, before anything is read of it."""
        return MicroBatch(batch, rows, states_wanted(self.run.teacher, self.objective.hidden))

    def collated(self, part: Part, some: Sequence[int]) -> Batch:
        """Some rows of a part of a step, on the device."""
        same = part.split is self.collate.split
        collate = self.collate if same else replace(self.collate, split=part.split)
        return collate([part.rows[n] for n in some])

    def terms_of(self, step: int) -> list[tuple[Term, float]]:
        """The terms that count in this step, with their weights."""
        done = (step - 1) / self.run.steps
        weighted = [(term, term.weight_at(done)) for term in self.run.recipe.terms]
        # A step in which every weight is zero still runs, so that processes stay together.
        return [(term, weight) for term, weight in weighted if weight] or weighted[:1]

    def backward(
        self,
        reading: MicroBatch,
        terms: Sequence[tuple[Term, float]],
        chosen: SelectFn,
    ) -> Tensor:
        """Adds a micro-batch's gradients; returns each term's share of the loss [terms]."""
        teacher = self.run.teacher
        plain = [term for term, _ in terms if not compares_states(term)]
        asking = [term.loss for term in plain if asks_teacher(term.loss)]
        logits_at = reading.outputs_of(teacher, asking) if teacher and asking else None
        states_at = None
        if len(plain) < len(terms) and teacher is not None:
            states_at = reading.states_of(teacher)
        values = self.values(plain)
        if self.watch is not None:
            values = self.watch.watched(values, plain)
        with self.run.autocast():
            loss, share = self.wrapped(reading.batch, terms, values, logits_at, chosen, states_at)
        if self.run.processes > 1:  # DDP averages their gradients; the loss is a sum over them
            loss = loss * self.run.processes
        # Not accelerate's backward, which divides by what its own configuration may say.
        scaler = self.accelerator.scaler
        (loss if scaler is None else scaler.scale(loss)).backward()
        return share  # type: ignore[no-any-return]

    def rehearse(self, rows: Sequence[Row]) -> None:
        """Forward and backward of one micro-batch as in a step, without taking the step."""
        reading = self.reading(self.collate(rows), range(len(rows)))
        valid = torch.full((), float(len(reading.batch.valid)), device=self.run.device)
        with self.accelerator.no_sync(self.wrapped):
            seen = TokenMask(None, valid, valid, valid)
            self.backward(reading, self.terms_of(1), lambda states: seen)
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def base_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without what accelerate wraps around it."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def apply(self) -> None:
        """The optimizer's step. Accelerate's, as its clipping, looks for packages on the disk."""
        (self.base_optimizer if self.accelerator.scaler is None else self.optimizer).step()

    def clip(self) -> Tensor:
        """The gradient's norm before it was clipped. What terms learn is clipped by itself."""
        clip = self.run.recipe.train.clip
        if not clip:
            return gradient_norm(self.objective)
        norm = self._clip_student(clip)
        if not self.learned:
            return norm
        return torch.hypot(norm, nn.utils.clip_grad_norm_(self.learned, clip))

    def _clip_student(self, clip: float) -> Tensor:
        if self.accelerator.scaler is None:
            return nn.utils.clip_grad_norm_(self.parameters, clip)
        # This takes the scale out of all gradients that the optimizer has.
        return self.accelerator.clip_grad_norm_(self.parameters, clip)  # type: ignore[no-any-return]
