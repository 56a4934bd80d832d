"""How much of the gradient each term of the objective gives, measured now and then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdcore.api.contracts import Term
from kdcore.api.schedule import Schedule

if TYPE_CHECKING:
    from kdcore.objective.chunked_loss import Answer, Prepared, Values


_EVERY = 100  # steps at the least, and a twentieth of the run
_LITTLE = 0.01


def is_measured(step: int, steps: int, terms: int) -> bool:
    """In the first step and rarely after it, where there is something to compare."""
    return terms > 1 and (step == 1 or step % max(_EVERY, steps // 20) == 0)


class GradientShares:
    """Watches one step: the square sums of each term's gradient in the student's logits.

    The losses of each micro-batch's first chunk are computed once more for each term by itself.
    Trunk and head run no more than otherwise, and the gradient that is trained with is computed as
    otherwise.
    """

    def __init__(self, labels: Sequence[str], device: torch.device) -> None:
        self._labels = list(labels)
        self.squares = torch.zeros(len(labels), device=device)

    def watched(self, values: Values, terms: Iterable[Term]) -> Values:
        """A micro-batch's values, which are looked at."""
        places = [self._labels.index(term.label) for term in terms]
        unseen = True

        def watching(
            student: Tensor,
            teacher: Answer,
            labels: Tensor,
            weights: Tensor,
            prepared: Prepared = (),
        ) -> tuple[Tensor, Tensor]:
            nonlocal unseen
            for n, place in enumerate(places if unseen else ()):
                alone = torch.zeros_like(weights)
                alone[n] = weights[n]
                _, gradient = values(student.clone(), teacher, labels, alone, prepared)
                self.squares[place] += gradient.square().sum()
            unseen = False
            return values(student, teacher, labels, weights, prepared)

        return watching


def shares_of(squares: Mapping[str, float]) -> dict[str, float]:
    """Each term's part of the sum of all terms' norms; nothing where nothing was measured."""
    norms = {label: square**0.5 for label, square in squares.items()}
    total = sum(norms.values())
    return {label: norm / total for label, norm in norms.items()} if total else {}


def negligible_terms(shares: Mapping[str, float], terms: Sequence[Term]) -> dict[str, str]:
    """By the label of a term that hardly counts, what to tell of it.

    A weight with a schedule passes through little by intent.
    """
    steady = [term for term in terms if not isinstance(term.weight, Schedule) and term.weight]
    return {
        term.label: f"the loss {term.label!r} gives {shares[term.label]:.1%} of the gradient "
        f"({_others(shares, term.label)}): its weight of {term.weight} hardly counts"
        for term in steady
        if shares.get(term.label, 1.0) < _LITTLE
    }


def _others(shares: Mapping[str, float], label: str) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items() if name != label)
