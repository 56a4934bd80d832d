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

from kdcore.api import Loss
from kdcore.batch import AnswersAt, Batch
from kdcore.blame import blame, described, unwritten
from kdcore.coarse import Coarse, coarsened
from kdcore.errors import PluginError
from kdcore.head import ChunkedLoss, Values, Work, chunk_size
from kdcore.products import outside_autocast, unrounded_type

if TYPE_CHECKING:
    from kdcore.language_model import LanguageModel
    from kdcore.options import Term


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


def values_of(losses: Sequence[Loss]) -> Values:
    """The terms' weighted sums and their gradient in the student's logits, by autograd."""
    for loss in losses:
        _refuse_learnable(loss)

    def values(
        student: Tensor, teacher: Tensor | Coarse | None, labels: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = student.detach().requires_grad_()
            each = [
                (per_token(loss, leaf, teacher, labels) * weight).sum()
                for loss, weight in zip(losses, weights, strict=True)
            ]
            (gradient,) = torch.autograd.grad(each, leaf)
        return torch.stack(each).detach(), gradient

    return values


def _refuse_learnable(loss: Loss) -> None:
    for name, held in vars(loss).items():
        parameters = held.parameters() if isinstance(held, nn.Module) else [held]
        if any(isinstance(p, Tensor) and p.requires_grad for p in parameters):
            raise PluginError(
                f"loss {loss.name!r} has something to learn in {name!r}, and gradients reach the "
                "student only; freeze it with requires_grad_(False)"
            )


def per_token(
    loss: Loss, student: Tensor, teacher: Tensor | Coarse | None, labels: Tensor
) -> Tensor:
    """A loss's values [n], its result checked; what it raises names it."""
    inputs = (student, teacher, labels)
    with blame(loss, "per_token"), unwritten(loss, "per_token", *inputs):
        return checked_values(loss, student, teacher, labels)


def checked_values(
    loss: Loss, student: Tensor, teacher: Tensor | Coarse | None, labels: Tensor
) -> Tensor:
    """`per_token` as a compiler can trace it. What needs no teacher sees all of the vocabulary."""
    if not loss.needs_teacher:
        values = loss.per_token(student, None, labels)
    elif isinstance(teacher, Coarse):
        values = loss.per_token(*coarsened(student, teacher, labels))
    else:
        values = loss.per_token(student, teacher, labels)
    if not isinstance(values, Tensor) or values.shape != labels.shape:
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise PluginError(
            f"{described(loss)} returned {found} from per_token, expected one value for each of "
            f"{len(labels)} tokens: a tensor of shape ({len(labels)},)"
        )
    if student.requires_grad and not values.requires_grad:
        raise PluginError(f"{described(loss)} returned values without a gradient")
    return values
