"""Base of the divergences: options, temperature, and sums in log space."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdcore import Loss, Schedule, Scheduled, component, tensor_now

Positive = Annotated[Scheduled, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Inside = Annotated[float, Field(gt=0, lt=1)]

EXCLUDED = -1e4  # finite, so that 0 * inf never occurs; log-probabilities at T = 1 stay far above


@component
class Divergence(Loss):
    """Base of the divergences: both logits are divided by `temperature` first."""

    temperature: Positive = 1.0

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """The divergence at each token, times `factor` [n]."""
        assert teacher is not None, "the engine hands a teacher to a loss that needs one"
        temperature = tensor_now(self.temperature)
        log_p = log_probabilities(teacher, temperature).clamp(min=EXCLUDED)
        log_q = log_probabilities(student, temperature)
        return self.factor(temperature) * self.between(log_p, log_q)

    def formula(self) -> str:
        """The factor times the expression of `written`."""
        temperature, factor = number(self.temperature), self.written_factor()
        written = self.written(f"p({temperature})", f"q({temperature})")
        return written if factor == "1" else f"{factor} * {written}"

    def factor(self, temperature: float | Tensor) -> float | Tensor:
        """The factor of the values at this temperature."""
        return 1.0

    def written_factor(self) -> str:
        """The factor in the formula."""
        return "1"

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Log-probabilities of teacher and student [n, V] -> divergences [n]."""
        raise NotImplementedError

    def written(self, p: str, q: str) -> str:
        """The divergence as an expression in `p` and `q`, in parentheses where it is a sum."""
        raise NotImplementedError


@component
class ScaledDivergence(Divergence):
    """`scale_by_t2`: multiplied by T^2, which makes the gradient's size nearly independent of T
    (Hinton)."""

    scale_by_t2: bool = True

    def factor(self, temperature: float | Tensor) -> float | Tensor:
        """T^2, or 1 where `scale_by_t2` is false."""
        return temperature**2 if self.scale_by_t2 else 1.0

    def written_factor(self) -> str:
        """T^2 as a number, or as a power if the temperature is scheduled."""
        if not self.scale_by_t2:
            return "1"
        at = self.temperature
        return f"{at}**2" if isinstance(at, Schedule) else number(at**2)


def log_probabilities(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Log-probabilities at a temperature, of logits [..., V]."""
    if not isinstance(temperature, Tensor) and temperature == 1:
        return F.log_softmax(logits, -1)
    return F.log_softmax(logits / temperature, -1)


def log_mixture(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """log(share * a + (1 - share) * b) for share < 1.

    logaddexp, because exponentiating first would underflow for unlikely ids.
    """
    if share == 0:
        return log_b
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) of log-probabilities [n, V] -> [n]."""
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def number(value: Scheduled) -> str:
    """A number as formulas show it, without the rounding error of 1 - 0.7; a schedule as given."""
    return str(value) if isinstance(value, Schedule) else f"{value:.12g}"


def weighted_sum(weight_a: float, a: str, weight_b: float, b: str) -> str:
    """A weighted sum for a formula, in parentheses."""
    return f"({number(weight_a)} * {a} + {number(weight_b)} * {b})"


def mixture(a: str, b: str, share: float) -> str:
    """share * a + (1 - share) * b for a formula."""
    return b if share == 0 else f"{number(share)} * {a} + {number(1 - share)} * {b}"
