"""What happened in the steps since the last record, summed on the device and read when logged."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdcore.record import Record

if TYPE_CHECKING:
    from accelerate import Accelerator

    from kdcore.options import Term
    from kdcore.run import Run
    from kdcore.selecting import Choices
    from kdcore.tokens import Ranked


class Recorder:
    """Sums over steps. Adding waits for nothing; `record` reads everything at once."""

    def __init__(self, run: Run, accelerator: Accelerator) -> None:
        self.run, self.accelerator = run, accelerator
        self.labels = [term.label for term in run.recipe.terms]
        self._begin()

    def _begin(self) -> None:
        self._terms = torch.zeros(len(self.labels), device=self.run.device)
        self._valid: list[Tensor] = []
        self._kept: list[Tensor] = []
        self._ranked: Ranked | None = None
        self._since = time.perf_counter()

    @property
    def steps(self) -> int:
        """How many steps were added since the last record."""
        return len(self._valid)

    def add(self, terms: Sequence[Term], shares: Sequence[Tensor], choices: Choices) -> None:
        """One step: its computed terms and their shares [terms] of each micro-batch."""
        for share in shares:
            for term, value in zip(terms, share, strict=True):
                self._terms[self.labels.index(term.label)] += value
        self._valid.append(choices.valid)
        self._kept += choices.kept
        self._ranked = choices.ranked

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count as training."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def record(self, lr: float) -> Record:
        """The record of the steps added; begins anew."""
        steps = self.steps
        valid = int(torch.stack(self._valid).long().sum())
        sums = self.accelerator.reduce(self._terms, "sum") / steps
        terms = dict(zip(self.labels, sums.tolist(), strict=True))
        self.run.tokens += valid
        taken = time.perf_counter() - self._since
        record = Record(
            step=self.run.step,
            tokens=self.run.tokens,
            loss=sum(terms.values()),
            terms=terms,
            lr=lr,
            kept=self._kept_share(valid),
            tokens_per_second=valid / taken,
            selection=_ranking(self._ranked),
        )
        self._begin()
        return record

    def _kept_share(self, valid: int) -> float:
        if self.run.recipe.selection is None:
            return 1.0
        kept = torch.stack(self._kept).sum().float()
        return float(self.accelerator.reduce(kept, "sum")) / max(1, valid)


def _ranking(ranked: Ranked | None) -> dict[str, float]:
    """The threshold and the mean scores of what the last step's ranking kept and dropped."""
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
