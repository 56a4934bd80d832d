"""Tokens on which teacher and student agree, or where only the teacher is confident."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcore import Loss, Selection, Tokens, component


@component
class Agreement(Selection):
    """Tokens chosen by the predictions of teacher and student.

    "acceptance": the student's top id is among the teacher's top `k`, the greedy form of SelecTKD
    (arXiv:2510.24021); other tokens get the weight `rejected`. "confidence": the teacher's highest
    probability is at least `confidence` and the student's entropy at least `uncertainty` nats, as
    LLKD (arXiv:2411.08028) but per token and with fixed thresholds.
    """

    name = "agreement"
    by: Literal["acceptance", "confidence"] = "acceptance"
    k: Annotated[int, Field(ge=1)] = 5
    rejected: Annotated[float, Field(ge=0, le=1)] = 0.0
    confidence: Annotated[float, Field(ge=0, le=1)] = 0.5
    uncertainty: Annotated[float, Field(ge=0)] = 0.5

    def needs_teacher(self) -> bool:
        """Always."""
        return True

    def keep(self, tokens: Tokens) -> Tensor:
        """A bool per token, or weights if rejected tokens have one [n]."""
        if self.by == "confidence":
            sure = tokens.score(_Confidence()) >= self.confidence
            return sure & (tokens.score(_Uncertainty()) >= self.uncertainty)
        accepted = tokens.score(_Acceptance(self.k)) > 0
        return torch.where(accepted, 1.0, self.rejected) if self.rejected else accepted


class _Acceptance(Loss):
    name = "acceptance"

    def __init__(self, k: int) -> None:
        self.k = k

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        assert teacher is not None
        proposed = student.argmax(-1, keepdim=True)
        better = (teacher > teacher.gather(-1, proposed)).sum(-1)
        return (better < self.k).to(student.dtype)


class _Confidence(Loss):
    name = "confidence"

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        assert teacher is not None
        return teacher.softmax(-1).amax(-1)


class _Uncertainty(Loss):
    name = "uncertainty"
    needs_teacher = False

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        each: Tensor = torch.special.entr(student.softmax(-1))
        return each.sum(-1)
