"""The gradients of one optimizer step: rows, teachers, selection, forward and backward.

The loss of a step is one weighted mean per term over the tokens of all micro-batches and processes.
Denominators are counted before the first backward, so micro-batch gradients simply add up, and
neither `micro_batch` nor the world size changes the objective, except where a selection ranks with
scope = "micro_batch".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdcore.api.options import schedules_in
from kdcore.api.tokens import PreparedLoss
from kdcore.data.batch import Batch, Row
from kdcore.data.collate import Collate, micro_batches
from kdcore.data.sampler import Part, Prefetcher, StreamedRows, TrainingRows
from kdcore.distributed import alone, over, total_of
from kdcore.objective.chunked_loss import Values
from kdcore.objective.gradient_shares import GradientShares, is_measured
from kdcore.objective.hidden_states import compares_states, states_wanted
from kdcore.objective.losses import asks_teacher
from kdcore.objective.objective import Objective, SelectFn, TokenMask
from kdcore.objective.readings import MicroBatch
from kdcore.objective.selection import SelectionResult, select
from kdcore.objective.teachers import prefetch
from kdcore.sharding.layout import Layout
from kdcore.sharding.wrapping import total_norm, whole
from kdcore.training.gpu.working_weights import WorkingWeights, average_gradients
from kdcore.training.rollout_rows import RolloutRows
from kdcore.training.run_state import workers_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from kdcore.api.loss import Term
    from kdcore.training.run_state import RunState


def gradient_norm(module: torch.nn.Module) -> Tensor:
    """The global gradient norm, as a tensor, without a device sync."""
    return total_norm([p.grad for p in module.parameters() if p.grad is not None])


@dataclass(eq=False, kw_only=True)
class TrainStep:
    """Computes the gradients of an optimizer step and applies them."""

    run: RunState
    accelerator: Accelerator
    objective: Objective
    layout: Layout
    wrapped: nn.Module  # the objective inside DDP
    values: Callable[[Sequence[Term]], Values]
    optimizer: torch.optim.Optimizer
    rows: TrainingRows | StreamedRows | RolloutRows
    working: WorkingWeights | None = None  # bf16 copies of the student's weights

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
        self.asks_ahead = self.run.teacher is not None and self.run.teacher.prefetches()
        # Generated rows depend on the current weights, so they cannot be prefetched.
        known = self.rollouts is None
        self.prefetcher = Prefetcher(
            self._readings,
            self.run.steps,
            workers=workers_of(self.run) if known else 0,
            here=known and self.asks_ahead,
        )

    def gradients(
        self, step: int, terms: Sequence[tuple[Term, float]]
    ) -> tuple[list[Tensor], SelectionResult]:
        """Accumulates a step's gradients. Returns each micro-batch's loss, and the selection."""
        logit_terms = [term for term, _ in terms if not compares_states(term)]
        if is_measured(step, self.run.steps, len(logit_terms)):
            self.watch = GradientShares(
                [term.label for term in self.run.recipe.terms], self.run.device
            )
        self.move_schedules(step - 1)
        readings = self._with_empty_batches(self.prefetcher.get(step))
        selection = select(
            self.run, readings, step, self.gather, self.total, [term for term, _ in terms]
        )
        shares: list[Tensor] = []
        with self.working_weights():
            for n, reading in enumerate(readings):
                # Accumulate locally; DDP all-reduces once, in the last backward.
                last = n == len(readings) - 1 and self.working is None
                with self.layout.accumulating(self.wrapped, last=last):
                    shares.append(self.backward(reading, terms, selection.masks[n]))
                if self.working is not None:
                    self.working.collect()
                reading.forget()
        if self.working is not None and self.run.processes > 1:
            average_gradients(self.parameters + self.learned, self.run.processes)
        self.layout.reduce(self.learned)
        return shares, selection

    def working_weights(self) -> AbstractContextManager[None]:
        """In the block, forward and backward use the bf16 weights, where the run has them."""
        return nullcontext() if self.working is None else self.working.in_use()

    def move_schedules(self, done: int) -> None:
        """Set scheduled options to their values after `done` steps."""
        for schedule in self.schedules:
            schedule.move(done / self.run.steps)

    def _readings(self, step: int) -> list[MicroBatch]:
        """This process's micro-batches of a step; an empty one where it has no rows."""
        # With scope = "micro_batch" the grouping is part of the experiment: do not sort rows.
        mixed = self.run.recipe.selection is not None and self.run.recipe.scope == "micro_batch"
        parts = self.rows.parts(step)
        readings = [
            self.reading(self.collated(part, rows), [part.first + n for n in rows])
            for part in [part for part in parts if part.rows] or parts[:1]
            for rows in micro_batches(part.rows, self.run.micro_batch, by_length=not mixed)
        ]
        teacher = self.run.teacher if self.asks_ahead else None
        if teacher and any(asks_teacher(term.loss) for term, _ in self.terms_of(step)):
            prefetch(teacher, [reading.batch for reading in readings])
        return readings

    def _with_empty_batches(self, readings: list[MicroBatch]) -> list[MicroBatch]:
        """With empty micro-batches, where every process must make the same number of calls."""
        missing = self.run.most(len(readings)) - len(readings)
        return [*readings, *(self.reading(self.collate([]), []) for _ in range(missing))]

    def reading(self, batch: Batch, rows: Sequence[int]) -> MicroBatch:
        """A micro-batch of the rows at these indices of the step; no teacher has read it yet."""
        return MicroBatch(batch, rows, states_wanted(self.run.teacher, self.objective.hidden))

    def collated(self, part: Part, rows: Sequence[int]) -> Batch:
        """A batch of some rows of a part, on the device."""
        same = part.split is self.collate.split
        collate = self.collate if same else replace(self.collate, split=part.split)
        return collate([part.rows[n] for n in rows])

    def terms_of(self, step: int) -> list[tuple[Term, float]]:
        """The terms with a nonzero weight in this step, and their weights."""
        done = (step - 1) / self.run.steps
        weighted = [(term, term.weight_at(done)) for term in self.run.recipe.terms]
        # A step with all weights at zero still runs one term: DDP needs a gradient everywhere.
        return [(term, weight) for term, weight in weighted if weight] or weighted[:1]

    def backward(
        self,
        reading: MicroBatch,
        terms: Sequence[tuple[Term, float]],
        chosen: SelectFn,
    ) -> Tensor:
        """Accumulates a micro-batch's gradients. Returns each term's part of the loss [terms]."""
        teacher = self.run.teacher
        logit_terms = [term for term, _ in terms if not compares_states(term)]
        losses = [term.loss for term in logit_terms if asks_teacher(term.loss)]
        logits_at = reading.outputs_of(teacher, losses) if teacher and losses else None
        states_at = None
        if len(logit_terms) < len(terms) and teacher is not None:
            states_at = reading.states_of(teacher)
        values = self.values(logit_terms)
        if self.watch is not None:
            values = self.watch.watched(values, logit_terms)
        with self.run.autocast():
            loss, share = self.wrapped(reading.batch, terms, values, logits_at, chosen, states_at)
        # DDP averages gradients over processes, but the loss is a sum over them: each process
        # already divides by the counts of the whole step.
        if self.run.processes > 1:
            loss = loss * self.run.processes
        # Not accelerate's backward, which may divide by its own gradient_accumulation_steps.
        scaler = self.accelerator.scaler
        (loss if scaler is None else scaler.scale(loss)).backward()
        return share  # type: ignore[no-any-return]

    def rehearse(self, rows: Sequence[Row], *, made_up: bool = False) -> None:
        """Forward and backward of one micro-batch as in a step, discarding the gradients.

        Nothing is counted over other processes. Losses that are prepared for the tokens of a step
        are left out for rows that are made up.
        """
        reading = self.reading(self.collate(rows), range(len(rows)))
        terms = self.terms_of(1)
        if made_up:
            terms = [
                (term, weight) for term, weight in terms if not isinstance(term.loss, PreparedLoss)
            ]
            chosen = self._all_tokens(reading)
        else:
            named = [term for term, _ in terms]
            chosen = select(self.run, [reading], 1, alone, lambda count: count, named).masks[0]
        with self.layout.accumulating(self.wrapped, last=False), self.working_weights():
            self.backward(reading, terms, chosen)
        reading.forget()
        self.optimizer.zero_grad(set_to_none=True)

    def _all_tokens(self, reading: MicroBatch) -> SelectFn:
        valid = torch.full((), float(len(reading.batch.valid)), device=self.run.device)
        seen = TokenMask(None, valid, valid, valid)
        return lambda states: seen

    @property
    def base_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def apply(self) -> None:
        """The optimizer's step. Without a scaler, skips accelerate's, which probes for packages."""
        (self.base_optimizer if self.accelerator.scaler is None else self.optimizer).step()

    def clip(self) -> Tensor:
        """Clips the gradients; returns their joint norm from before.

        Parameters that terms learn are clipped separately, so that they do not change how strongly
        the student's gradient is clipped.
        """
        if self.accelerator.scaler is not None:
            self.layout.unscale(self.accelerator.scaler, self.base_optimizer, self.learned)
        clip = self.run.recipe.train.clip
        if not clip:
            return gradient_norm(self.objective)
        norm = whole(nn.utils.clip_grad_norm_(self.parameters, clip))
        if not self.learned:
            return norm
        # The two sets are disjoint: the joint norm is sqrt(student^2 + learned^2).
        return torch.hypot(norm, nn.utils.clip_grad_norm_(self.learned, clip))
