"""Likelihood of the labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdcore import Loss, component


@component
class CrossEntropy(Loss):
    """Negative log-likelihood of the label, CE(q, y). Needs no teacher."""

    name = "ce"
    needs_teacher = False
    controls: ClassVar[Mapping[str, str]] = {"no-teacher": ""}

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """-log q(y)."""
        return F.cross_entropy(student, labels, reduction="none")

    def formula(self) -> str:
        """CE(q(1), y)."""
        return "CE(q(1), y)"


@component
class SmoothedCrossEntropy(Loss):
    """Cross-entropy with label smoothing: `smoothing` of the mass is spread evenly over all ids.

    Szegedy et al. 2016, arXiv:1512.00567. Needs no teacher. It is a control for distillation: with
    the smoothing that has a teacher's mean entropy, the student gets the teacher's confidence but
    not its ranking of ids.
    """

    name = "smoothed-ce"
    needs_teacher = False
    controls: ClassVar[Mapping[str, str]] = {"smoothed": "smoothing"}
    smoothing: Annotated[float, Field(ge=0, le=1)] = 0.1

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """(1 - s) * -log q(y) + s * (the mean of -log q over all ids)."""
        return F.cross_entropy(student, labels, reduction="none", label_smoothing=self.smoothing)

    def formula(self) -> str:
        """(1 - s) CE(q(1), y) + s CE_ALL(q(1))."""
        kept = f"{1 - self.smoothing:.12g}"
        return f"({kept} * CE(q(1), y) + {self.smoothing:.12g} * CE_ALL(q(1)))"
