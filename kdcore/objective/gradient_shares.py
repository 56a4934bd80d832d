"""Each term's share of the gradient, measured in a few steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdcore.api.loss import Term
from kdcore.api.schedule import Schedule

if TYPE_CHECKING:
    from kdcore.objective.chunked_loss import Answer, Prepared, Values


_EVERY = 100  # steps between measurements, or a twentieth of the run if longer
_LITTLE = 0.01


def is_measured(step: int, steps: int, terms: int) -> bool:
    """Whether to measure in this step: the first, and few after it; needs several terms."""
    return terms > 1 and (step == 1 or step % max(_EVERY, steps // 20) == 0)


class GradientShares:
    """The squared norm of each term's gradient in the student's logits, over one step.

    Evaluates the losses on the first chunk of each micro-batch once more per term. Adds no passes
    through trunk and head, and leaves the training gradient unchanged.
    """

    def __init__(self, labels: Sequence[str], device: torch.device) -> None:
        self._labels = list(labels)
        self.squares = torch.zeros(len(labels), device=device)

    def watched(self, values: Values, terms: Iterable[Term]) -> Values:
        """Wraps a micro-batch's values to measure its first chunk."""
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
                # With all other weights at 0, the total's gradient is that of this term. The clone
                # is needed as `values` may overwrite the logits.
                alone = torch.zeros_like(weights)
                alone[n] = weights[n]
                _, gradient = values(student.clone(), teacher, labels, alone, prepared)
                self.squares[place] += gradient.square().sum()
            unseen = False
            return values(student, teacher, labels, weights, prepared)

        return watching


def shares_of(squares: Mapping[str, float]) -> dict[str, float]:
    """Each term's gradient norm over the sum of all norms; {} without a measurement.

    The sum of norms, not the norm of the sum: terms whose gradients cancel still have their shares.
    """
    norms = {label: square**0.5 for label, square in squares.items()}
    total = sum(norms.values())
    return {label: norm / total for label, norm in norms.items()} if total else {}


def negligible_terms(shares: Mapping[str, float], terms: Sequence[Term]) -> dict[str, str]:
    """Warnings about terms with a negligible gradient, by label.

    Terms with a scheduled weight are exempt: they may be small on purpose.
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
