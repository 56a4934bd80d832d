"""Losses that prepare a step, where there is no step: they are given zeros of what they prepare."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor

from kdcore.api.contracts import Loss, PreparedLoss, Teacher, Tokens
from kdcore.objective.selection import prepared_by

_TOKENS = 4


class BlankTokens(Tokens):
    """A few tokens of one document of which everything is 0, and which every term sees."""

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
        """All."""
        return self._zeros() == 0

    def over_step(self, values: Tensor) -> Tensor:
        """They are all there are."""
        return values

    def random(self) -> Tensor:
        """Zeros."""
        return torch.zeros(_TOKENS)


class BlankPrepared(Loss):
    """A loss that prepares, as a loss of single tokens: what it prepared is 0."""

    def __init__(self, loss: PreparedLoss) -> None:
        self._loss = deepcopy(loss)
        self._shape = prepared_by(self._loss, BlankTokens()).shape[1:]
        # The class has these for all losses.
        self.name, self.needs_teacher = loss.name, loss.needs_teacher  # type: ignore[misc]

    def temperatures(self) -> Sequence[float]:
        """Those of the loss."""
        return self._loss.temperatures()

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Its values where zeros were prepared."""
        prepared = student.new_zeros(len(labels), *self._shape)
        return self._loss.per_token_prepared(student, teacher, labels, prepared)


def of_single_tokens(losses: Sequence[Loss]) -> list[Loss]:
    """Losses that can be run on logits alone, for what their tensors take."""
    return [BlankPrepared(loss) if isinstance(loss, PreparedLoss) else loss for loss in losses]
