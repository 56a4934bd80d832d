"""Likelihood of the labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdcore import Loss, component


@component
class CrossEntropy(Loss):
    """Negative log-likelihood of the label, CE(q, y). Needs no teacher."""

    name = "ce"
    needs_teacher = False

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """-log q(y)."""
        return F.cross_entropy(student, labels, reduction="none")

    def formula(self) -> str:
        """CE(q(1), y)."""
        return "CE(q(1), y)"
