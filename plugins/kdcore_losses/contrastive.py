"""Losses that treat what the teacher wrote and what the student wrote differently."""

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
_APART = 1e-5  # added to g, so that no answer divides by zero


@component
class DistiLLM2(PreparedLoss):
    """A skewed KL where the teacher wrote, and a skewed reverse KL where the student did.

    Of answers that the student wrote (`source` "student") beta KL(q || (1 - a) p + a q), with the
    mixture a constant to the gradient; of all others (2 - beta) KL(p || a p + (1 - a) q). Each part
    is the mean over its answers of the mean over their tokens.

    a is `skew`, or where `adaptive` one of each answer: 1 - (1 - skew) m / g, between 0.01 and
    `skew`. g is how much likelier a token of the answer is to who wrote it than to the other, the
    difference of both geometric means, and m the mean of g in the first step that has such answers.
    To the gradient a is a constant.

    Ko et al. 2025 (DistiLLM-2), arXiv:2503.07067.
    """

    name = "distillm2"
    skew: Inside = 0.1
    beta: Annotated[Scheduled, Field(ge=0, le=2)] = 1.0
    adaptive: bool = True

    def __post_init__(self) -> None:
        self._kept = _Kept()

    def prepare(self, tokens: Tokens) -> Tensor:
        """Whether the student wrote it, its skew and its weight, of each token [n, 3]."""
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
        """Of the answers of one writer, `logs` being its log-likelihoods and the other's [n]."""
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
        """The weighted divergence to the mixture that belongs to who wrote the token."""
        assert teacher is not None, "the engine hands a teacher to a loss that needs one"
        log_p, log_q = (log_probabilities(each, 1.0) for each in (teacher, student))
        log_p = log_p.clamp(min=EXCLUDED)
        by_student, skew, weight = prepared[:, :1] > 0, prepared[:, 1:2], prepared[:, 2]
        writer = torch.where(by_student, log_q, log_p)
        skewed = torch.where(by_student, log_q.detach(), log_p) + skew.log()
        mixed = torch.logaddexp(skewed, torch.where(by_student, log_p, log_q) + (-skew).log1p())
        return weight * kl(writer, mixed)

    def formula(self) -> str:
        """As `kdcore plan` writes it."""
        return f"DISTILLM2(p(1), q(1), {number(self.skew)}, {number(self.beta)})"

    def state_dict(self) -> Mapping[str, Tensor | int | float | str | bytes]:
        """The gaps that skews are measured by."""
        return {"gaps": self._kept.gaps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self._kept.gaps = state["gaps"]


class _Kept:
    """m of the others' answers and of the student's, NaN while there were none.

    In an object of its own: a loss whose attributes change is not compiled.
    """

    def __init__(self) -> None:
        self.gaps = torch.full((2,), math.nan, dtype=torch.float64)
        self._before, self._step = self.gaps, 0

    def before(self, step: int) -> Tensor:
        """As the step began, which may be asked again."""
        if step != self._step:
            self._before, self._step = self.gaps, step
        return self._before


@dataclass(frozen=True, eq=False)
class _Side:
    skew: Tensor  # [n], of each token's answer
    weight: Tensor  # [n], 0 where the other wrote or the term does not see the token
    gap: Tensor  # m, a scalar; NaN while there were no answers


def _written_by_student(tokens: Tokens) -> Tensor:
    codes, writers = tokens.column("source"), list(tokens.categories("source"))
    if "student" not in writers:
        return torch.zeros_like(codes, dtype=torch.bool)
    return codes == writers.index("student")
