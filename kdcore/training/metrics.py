"""Metrics since the last record: summed on the device, read only when logged."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdcore.api.hookspecs import Record
from kdcore.objective.gradient_shares import shares_of
from kdcore.objective.hidden_states import compares_states
from kdcore.rollout.statistics import rates, sums

if TYPE_CHECKING:
    from accelerate import Accelerator

    from kdcore.api.loss import Term
    from kdcore.models.completions import Completion
    from kdcore.objective.selection import SelectionResult
    from kdcore.objective.step_tokens import RankedScores
    from kdcore.training.run_state import RunState


class MetricsAccumulator:
    """Sums over steps. Adding never syncs the device; `count` and `record` read all at once."""

    def __init__(self, run: RunState, accelerator: Accelerator) -> None:
        self.run, self.accelerator = run, accelerator
        self.labels = [term.label for term in run.recipe.terms]
        self._begin()

    def _begin(self) -> None:
        self._terms = torch.zeros(len(self.labels), device=self.run.device)
        self._squares = torch.zeros_like(self._terms)
        self._means = torch.zeros_like(self._terms)  # unweighted terms
        # The number of steps in which each term was computed, and the sum of its weights there.
        self._seen = torch.zeros(2, len(self.labels), device=self.run.device)
        self._steps = self._tokens = self._kept = 0  # of the counted steps
        self._uncounted: list[tuple[Tensor, Tensor, list[Tensor]]] = []  # steps, valid, kept
        self._ranked: RankedScores | None = None
        self._written = [0.0] * 4  # the result of `sums`, over all processes
        self._writing = 0.0  # seconds
        self._known: list[Tensor] = []  # share of tokens that the teacher covers, by step
        self._since = time.perf_counter()

    @property
    def steps(self) -> int:
        """The number of steps counted since the last record."""
        return self._steps

    def add(
        self,
        terms: Sequence[tuple[Term, float]],
        shares: Sequence[Tensor],
        selection: SelectionResult,
        good: Tensor,
        squares: Tensor | None = None,
    ) -> None:
        """Add a step: its weighted terms, and each micro-batch's parts of the loss [terms].

        `good` is 0 if the step was skipped, and then it does not count. `squares` are the squared
        gradient norms of the terms, where measured.
        """
        if squares is not None:
            self._squares += torch.where(good > 0, squares, 0)
        places = [self.labels.index(term.label) for term, _ in terms]
        for share in shares:
            counted = torch.where(good > 0, share, 0)
            for place, value, (_, weight) in zip(places, counted, terms, strict=True):
                self._terms[place].add_(value)
                self._means[place].add_(value, alpha=1 / weight if weight else 0.0)
        for place, (_, weight) in zip(places, terms, strict=True):
            self._seen[0, place].add_(good, alpha=float(weight != 0))
            self._seen[1, place].add_(good, alpha=weight)
        self._uncounted.append((good, selection.valid * good, [n * good for n in selection.kept]))
        self._ranked = selection.ranked
        if selection.known is not None:
            self._known.append(selection.known / selection.valid.clamp(min=1))

    def add_written(self, completions: Sequence[Completion], seconds: float) -> None:
        """Add the completions that a step trains on, and the time spent on generation."""
        more = sums(completions)
        self._written = [one + other for one, other in zip(self._written, more, strict=True)]
        self._writing += seconds

    def count(self) -> None:
        """Update the run's token count."""
        if not self._uncounted:
            return
        good, valid, kept = zip(*self._uncounted, strict=True)
        tokens = int(torch.stack(valid).long().sum())
        counts = [count for some in kept for count in some]
        self._kept += int(torch.stack(counts).long().sum()) if counts else 0
        self._tokens += tokens
        self._steps += int(torch.stack(good).sum())
        self.run.tokens += tokens
        self._uncounted = []

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude a duration from training time."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def record(self, lr: float) -> Record:
        """The record of the added steps; resets the sums."""
        self.count()
        weighted = self._by_label(self._terms, self._steps)
        times, weights = self._seen.tolist()
        means = self._by_label(self._means).items()
        step_counts = {label: n for label, n in zip(self.labels, times, strict=True) if n}
        taken = time.perf_counter() - self._since
        record = Record(
            step=self.run.step,
            tokens=self.run.tokens,
            loss=sum(weighted.values()),
            terms={
                label: value / step_counts[label] for label, value in means if label in step_counts
            },
            weights={
                label: weight / self._steps
                for label, weight in zip(self.labels, weights, strict=True)
            },
            lr=lr,
            kept=self._kept_share(),
            tokens_per_second=self._tokens / taken,
            selection=_ranking(self._ranked),
            rollout=self._rollout(taken),
            gradient=shares_of(self._measured(self._by_label(self._squares))),
            teacher=_known(self._known),
        )
        self._begin()
        return record

    def _measured(self, squares: Mapping[str, float]) -> Mapping[str, float]:
        """Without terms that have no gradient in the logits."""
        hidden = {term.label for term in self.run.recipe.terms if compares_states(term)}
        return {label: square for label, square in squares.items() if label not in hidden}

    def _rollout(self, taken: float) -> dict[str, float]:
        found = rates(self._written)
        return found | {"time_share": self._writing / taken} if found else {}

    def _by_label(self, sums: Tensor, count: int = 1) -> dict[str, float]:
        """Sums over all processes, by label."""
        mean = self.accelerator.reduce(sums, "sum") / count
        return dict(zip(self.labels, mean.tolist(), strict=True))

    def _kept_share(self) -> float:
        if self.run.recipe.selection is None:
            return 1.0
        kept = torch.tensor(float(self._kept), device=self.run.device)
        return float(self.accelerator.reduce(kept, "sum")) / max(1, self._tokens)

    def state_dict(self) -> dict[str, Tensor]:
        """This process's sums, for a checkpoint between two records."""
        self.count()
        taken = time.perf_counter() - self._since
        counts = [self._steps, self._tokens, self._kept, taken]
        counted = torch.tensor(counts, dtype=torch.float64)
        own = {"terms": self._terms, "squares": self._squares, "means": self._means}
        written = torch.tensor([*self._written, self._writing], dtype=torch.float64)
        return own | {"seen": self._seen, "counts": counted, "written": written}

    def load_state_dict(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Restore the sums of the processes that wrote a checkpoint, whatever their number."""
        self._begin()
        if not states or not states[0]:  # absent from checkpoints that one process wrote alone
            return
        steps, tokens, _, taken = states[0]["counts"].tolist()
        self._steps, self._tokens = int(steps), int(tokens)
        self._since -= taken
        if "written" in states[0]:
            *self._written, self._writing = states[0]["written"].tolist()
        if "seen" in states[0]:  # absent from older checkpoints
            self._seen += states[0]["seen"].to(self._seen.device)
        for state in states[self.run.process :: self.run.processes]:
            if "means" in state:
                self._means += state["means"].to(self._means.device)
            self._terms += state["terms"].to(self._terms.device)
            self._squares += state["squares"].to(self._terms.device)
            self._kept += int(state["counts"][2])


def _known(shares: Sequence[Tensor]) -> dict[str, float]:
    """The mean share of tokens that the teacher covers, where it may be below 1."""
    return {"aligned": float(torch.stack(list(shares)).mean())} if shares else {}


def _ranking(ranked: RankedScores | None) -> dict[str, float]:
    """The threshold, and the mean scores of kept and dropped tokens in the last step's ranking."""
    if ranked is None:
        return {}
    scores, keep = ranked.scores, ranked.kept
    kept, dropped = scores[keep], scores[~keep & ~scores.isnan()]
    found = {}
    if len(kept):
        found = {"threshold": float(kept.min()), "excess_kept": float(kept.mean())}
    if len(dropped):
        found["excess_dropped"] = float(dropped.mean())
    return found
