"""What the divergences share: options, temperature, and sums in log space."""

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

EXCLUDED = -1e4  # finite, so that no 0 * inf arises; log-probabilities at T = 1 stay far above


@component
class Divergence(Loss):
    """What the divergences share: both logits are divided by `temperature` first."""

    temperature: Positive = 1.0

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """The divergence of each token, times `factor`."""
        assert teacher is not None, "the engine hands a teacher to a loss that needs one"
        temperature = tensor_now(self.temperature)
        log_p = log_probabilities(teacher, temperature).clamp(min=EXCLUDED)
        log_q = log_probabilities(student, temperature)
        return self.factor(temperature) * self.between(log_p, log_q)

    def formula(self) -> str:
        """The factor, then what `written` says of both distributions."""
        temperature, factor = number(self.temperature), self.written_factor()
        written = self.written(f"p({temperature})", f"q({temperature})")
        return written if factor == "1" else f"{factor} * {written}"

    def factor(self, temperature: float | Tensor) -> float | Tensor:
        """What the values are multiplied by at this temperature."""
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
    """Multiplied by T^2, so that the gradient's size hardly depends on T (Hinton's convention)."""

    scale_by_t2: bool = True

    def factor(self, temperature: float | Tensor) -> float | Tensor:
        """T^2, or 1 where `scale_by_t2` is false."""
        return temperature**2 if self.scale_by_t2 else 1.0

    def written_factor(self) -> str:
        """T^2 as a number, or with a schedule as a power."""
        if not self.scale_by_t2:
            return "1"
        at = self.temperature
        return f"{at}**2" if isinstance(at, Schedule) else number(at**2)


def log_probabilities(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Log-probabilities at a temperature."""
    if not isinstance(temperature, Tensor) and temperature == 1:
        return F.log_softmax(logits, -1)
    return F.log_softmax(logits / temperature, -1)


def log_mixture(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """log(share a + (1 - share) b), where the mixture itself would underflow; share below 1."""
    if share == 0:
        return log_b
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) of log-probabilities [n, V] -> [n]."""
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def number(value: Scheduled) -> str:
    """A number as formulas write it: without the rounding of 1 - 0.7; of a schedule both ends."""
    return str(value) if isinstance(value, Schedule) else f"{value:.12g}"


def weighted_sum(weight_a: float, a: str, weight_b: float, b: str) -> str:
    """A formula's weighted sum, in parentheses."""
    return f"({number(weight_a)} * {a} + {number(weight_b)} * {b})"


def mixture(a: str, b: str, share: float) -> str:
    """A formula's share a + (1 - share) b."""
    return b if share == 0 else f"{number(share)} * {a} + {number(1 - share)} * {b}"
