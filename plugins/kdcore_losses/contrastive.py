"""Losses that treat teacher-written and student-written answers differently."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from kdcore import PreparedLoss, Scheduled, Tokens, component, value_now
from kdcore_losses.base import EXCLUDED, Inside, kl, log_probabilities, number

_LEAST_SKEW = 0.01
_APART = 1e-5  # added to g, against division by zero


@component
class DistiLLM2(PreparedLoss):
    """Skew KL on the teacher's answers, skew reverse KL on the student's.

    On answers of the student (`source` is "student"): beta KL(q || (1 - a) p + a q), where the
    mixture is constant for the gradient. On all other answers: (2 - beta) KL(p || a p + (1 - a) q).
    Each part is averaged over the tokens of an answer, then over answers.

    a is `skew`; with `adaptive` each answer has its own, 1 - (1 - skew) m / g, clamped between 0.01
    and `skew`. g is the geometric-mean token probability of the answer under its writer minus that
    under the other model; m is the mean of g over the first step with such answers. No gradient
    flows through a.

    Ko et al. 2025 (DistiLLM-2), arXiv:2503.07067.
    """

    name = "distillm2"
    skew: Inside = 0.1
    beta: Annotated[Scheduled, Field(ge=0, le=2)] = 1.0
    adaptive: bool = True

    def __post_init__(self) -> None:
        self._kept = _Kept()

    def prepare(self, tokens: Tokens) -> Tensor:
        """Per token: whether the student wrote it, its skew, and its weight [n, 3]."""
        log_q, log_p = -tokens.student_nll(), -tokens.nll()
        by_student, seen = _written_by_student(tokens), tokens.seen(self)
        beta, before = value_now(self.beta), self._kept.before(tokens.step).to(log_q.device)
        other = self._side(tokens, seen & ~by_student, (log_p, log_q), before[0])
        own = self._side(tokens, seen & by_student, (log_q, log_p), before[1])
        self._kept.gaps = torch.stack([other.gap, own.gap])
        skew = torch.where(by_student, own.skew, other.skew)
        weight = torch.where(by_student, beta * own.weight, (2 - beta) * other.weight)
        return torch.stack([by_student, skew, weight], 1).to(log_q.dtype)

    def _side(
        self, tokens: Tokens, mine: Tensor, logs: tuple[Tensor, Tensor], before: Tensor
    ) -> _Side:
        """The answers of one writer; `logs` are its log-likelihoods and the other model's [n]."""
        length = tokens.by_document(mine).clamp(min=1)
        writer, other = (tokens.by_document(torch.where(mine, each, 0)) / length for each in logs)
        apart, share = writer.exp() - other.exp(), mine / length
        answers = tokens.over_step(share).sum()
        gap = torch.where(before.isnan(), tokens.over_step(share * apart).sum() / answers, before)
        skew = torch.full_like(apart, self.skew)
        if self.adaptive:
            wanted = 1 - (1 - self.skew) * gap / (apart + _APART)
            skew = wanted.nan_to_num(nan=self.skew).clamp(min(_LEAST_SKEW, self.skew), self.skew)
        return _Side(skew, share * tokens.count(self) / answers.clamp(min=1), gap)

    def per_token_prepared(
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, prepared: Tensor
    ) -> Tensor:
        """The weighted divergence to the mixture that belongs to the token's writer [n]."""
        assert teacher is not None, "the engine hands a teacher to a loss that needs one"
        log_p, log_q = (log_probabilities(each, 1.0) for each in (teacher, student))
        log_p = log_p.clamp(min=EXCLUDED)
        by_student, skew, weight = prepared[:, :1] > 0, prepared[:, 1:2], prepared[:, 2]
        writer = torch.where(by_student, log_q, log_p)
        # log((1 - a) * other + a * writer) with logaddexp, because the mixture itself may
        # underflow. Detached where the student wrote: there the mixture is constant for the
        # gradient.
        skewed = torch.where(by_student, log_q.detach(), log_p) + skew.log()
        mixed = torch.logaddexp(skewed, torch.where(by_student, log_p, log_q) + (-skew).log1p())
        return weight * kl(writer, mixed)

    def formula(self) -> str:
        """The formula as `kdcore plan` prints it."""
        return f"DISTILLM2(p(1), q(1), {number(self.skew)}, {number(self.beta)})"

    def state_dict(self) -> Mapping[str, Tensor | int | float | str | bytes]:
        """The reference gaps m of both writers."""
        return {"gaps": self._kept.gaps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the gaps."""
        self._kept.gaps = state["gaps"]


class _Kept:
    """m for the other answers and for the student's; NaN until there are any.

    A separate object, because a loss whose attributes change is not compiled.
    """

    def __init__(self) -> None:
        self.gaps = torch.full((2,), math.nan, dtype=torch.float64)
        self._before, self._step = self.gaps, 0

    def before(self, step: int) -> Tensor:
        """The gaps as of the start of this step, however often the step reads them."""
        if step != self._step:
            self._before, self._step = self.gaps, step
        return self._before


@dataclass(frozen=True, eq=False)
class _Side:
    skew: Tensor  # [n], that of the token's answer
    weight: Tensor  # [n], 0 for the other writer's tokens and those outside the term
    gap: Tensor  # m, a scalar; NaN until there are answers


def _written_by_student(tokens: Tokens) -> Tensor:
    codes, writers = tokens.column("source"), list(tokens.categories("source"))
    if "student" not in writers:
        return torch.zeros_like(codes, dtype=torch.bool)
    return codes == writers.index("student")
