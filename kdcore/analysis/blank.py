"""`PreparedLoss`es outside a step, for memory estimates: they get zeros."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor

from kdcore.api.loss import Loss
from kdcore.api.teacher import Teacher
from kdcore.api.tokens import PreparedLoss, Tokens
from kdcore.objective.selection import prepared_by

_TOKENS = 4


class BlankTokens(Tokens):
    """A few tokens of one document; all values are 0, and every term sees them."""

    step = 1

    def _zeros(self) -> Tensor:
        return torch.zeros(_TOKENS, dtype=torch.int64)

    labels = row = position = document = property(_zeros)

    def column(self, name: str) -> Tensor:
        """Zeros."""
        return self._zeros()

    def categories(self, name: str) -> Sequence[str]:
        """One text."""
        return [""]

    def seen(self, loss: Loss) -> Tensor:
        """All."""
        return self._zeros() == 0

    def count(self, loss: Loss) -> Tensor:
        """Their number."""
        return torch.tensor(float(_TOKENS))

    def by_document(self, values: Tensor) -> Tensor:
        """The sum of all."""
        return values.double().sum().expand(_TOKENS)

    by_row = by_document

    def student_nll(self) -> Tensor:
        """Zeros."""
        return torch.zeros(_TOKENS)

    def old_log_probs(self) -> Tensor:
        """Zeros."""
        return torch.zeros(_TOKENS, dtype=torch.float64)

    def nll(self, teacher: Teacher | None = None) -> Tensor:
        """Zeros."""
        return torch.zeros(_TOKENS)

    def score(
        self, loss: Loss, teacher: Teacher | None = None, prepared: Tensor | None = None
    ) -> Tensor:
        """Zeros."""
        return torch.zeros(_TOKENS)

    def spans(self) -> Tensor:
        """One of all tokens."""
        return self._zeros()

    def span_nll(self) -> Tensor:
        """Zeros."""
        return torch.zeros(_TOKENS, 2)

    def shared_ids(self) -> tuple[Tensor, Tensor]:
        """The first few."""
        return torch.arange(_TOKENS), torch.arange(_TOKENS)

    def top(self, scores: Tensor, share: object) -> Tensor:
        """All are kept."""
        return self._zeros() == 0

    def over_step(self, values: Tensor) -> Tensor:
        """Unchanged: there are no other tokens."""
        return values

    def random(self) -> Tensor:
        """Zeros."""
        return torch.zeros(_TOKENS)


class BlankPrepared(Loss):
    """A `PreparedLoss` as a loss of single tokens, with zeros as its prepared input."""

    def __init__(self, loss: PreparedLoss) -> None:
        self._loss = deepcopy(loss)
        self._shape = prepared_by(self._loss, BlankTokens()).shape[1:]
        # Class variables of `Loss`, set here on the instance.
        self.name, self.needs_teacher = loss.name, loss.needs_teacher  # type: ignore[misc]

    def temperatures(self) -> Sequence[float]:
        """Those of the wrapped loss."""
        return self._loss.temperatures()

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """The wrapped loss's values with zeros as prepared input."""
        prepared = student.new_zeros(len(labels), *self._shape)
        return self._loss.per_token_prepared(student, teacher, labels, prepared)


def of_single_tokens(losses: Sequence[Loss]) -> list[Loss]:
    """Losses that run on logits alone, to trace the memory of their tensors."""
    return [BlankPrepared(loss) if isinstance(loss, PreparedLoss) else loss for loss in losses]
