"""What is trained: trunk, weights of every token in every term, chunked loss.

The module is what DDP wraps. Every denominator is known before the first backward: a term's value
is its weight times the mean over the tokens that it sees in the whole optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdcore.data.batch import AnswersAt, Batch
from kdcore.models.head import chunk_size, outside_autocast, unrounded_type
from kdcore.objective.chunked_loss import ChunkedLoss, Values, Work

if TYPE_CHECKING:
    from kdcore.api.contracts import Term
    from kdcore.models.causal_lm import LanguageModel


@dataclass(frozen=True, eq=False)
class Seen:
    """Which of a micro-batch's valid tokens the selection kept, and the step's counts."""

    keep: Tensor | None  # bool [valid tokens]; None without a selection
    valid: Tensor  # scalars: tokens of the whole optimizer step,
    ranked: Tensor  # of these, those that were ranked against each other,
    kept: Tensor  # and of these those that were kept

    def mask(self, on: str) -> Tensor | None:
        """The tokens that a term with this `on` sees; None for all."""
        if self.keep is None or on == "all":
            return None
        return self.keep if on == "kept" else ~self.keep

    def count(self, on: str, dtype: torch.dtype) -> Tensor:
        """How many tokens that are in the whole step, at least 1.

        A micro-batch that ranks its own tokens counts as its share of the step's, whatever it
        keeps of them.
        """
        if self.keep is None:
            return self.valid.to(dtype).clamp(min=1)
        valid, ranked, kept = (n.to(dtype) for n in (self.valid, self.ranked, self.kept))
        shares = {"all": ranked, "kept": kept, "dropped": ranked - kept}
        return (shares[on] * (valid / ranked.clamp(min=1))).clamp(min=1)


Choose = Callable[[Tensor], Seen]
"""The micro-batch's states [rows * time, H] -> what its selection kept."""


class Objective(nn.Module):
    """The student and the weighted terms. `forward` gives one micro-batch's share of the loss."""

    def __init__(self, student: LanguageModel, chunk: int | None = None) -> None:
        super().__init__()
        self.model = student.model
        self.student = student
        self.chunk = chunk

    def forward(
        self,
        batch: Batch,
        terms: Sequence[tuple[Term, float]],
        values: Values,
        teacher: AnswersAt | None,
        choose: Choose,
    ) -> tuple[Tensor, Tensor]:
        """One micro-batch's share of the loss, and for the log each term's share of it [terms].

        `terms` come with their weights of this step and none is zero. The states go to `choose`
        without gradient, so a step of one micro-batch is scored by its training forward.
        """
        head = self.student
        states = head.states(batch)
        with outside_autocast(states.device.type):
            with torch.no_grad():
                seen = choose(states.detach())
            work = self._work(batch, terms, values, teacher, seen, unrounded_type(states.dtype))
            total: Tensor = ChunkedLoss.apply(  # type: ignore[no-untyped-call]
                states, head.weight, head.bias, head.computed_weight(), work
            )
        return total, work.sums

    def _work(
        self,
        batch: Batch,
        terms: Sequence[tuple[Term, float]],
        values: Values,
        teacher: AnswersAt | None,
        seen: Seen,
        dtype: torch.dtype,
    ) -> Work:
        valid = batch.valid
        each = [weight / seen.count(term.on, dtype) for term, weight in terms]
        masks = [seen.mask(term.on) for term, _ in terms]
        weights = torch.stack([_laid(*both, len(valid)) for both in zip(each, masks, strict=True)])
        if all(mask is not None for mask in masks):
            some = (weights != 0).any(0)
            valid, weights = valid[some], weights[:, some]
        device = batch.labels.device
        return Work(
            positions=valid,
            labels=batch.labels[valid],
            weights=weights,
            values=values,
            teacher=teacher,
            vocabulary=batch.vocabulary,
            chunk=self.chunk or chunk_size(batch.vocabulary, device),
            bend=self.student.bend,
        )


def _laid(each: Tensor, mask: Tensor | None, tokens: int) -> Tensor:
    """[tokens]: a token's share in a term where the term sees it, else 0."""
    return each.expand(tokens) if mask is None else each * mask
