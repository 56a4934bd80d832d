"""A temperature per token, and a focus on hard tokens that follows the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from kdcore import Loss, PreparedLoss, Tokens, component
from kdcore_more_losses.divergences import kl, log_probabilities

_RATIO = 2  # index of r in the state (average, reference, r)


@component
class AdaKD(PreparedLoss):
    """T^2 KL(q || p) of the hardest tokens, each at its own temperature: low for hard tokens.

    A token's hardness is the Hellinger distance h of p and q. The hardest share r of the tokens is
    trained, at T = temperature exp(-scale tanh(log(h / median))) with the median over these tokens.
    r starts at 1. After `warmup` steps, a moving average of the loss is compared with its value at
    the last change of r: if it fell by more than a share of `tolerance`, r shrinks by `rate`; if it
    rose by as much, r grows by `rate`.

    Xie et al. 2026 (AdaKD, AAAI), arXiv:2510.11615. The loss that controls r is KL(q || p) of these
    tokens at T = 1. In the authors' code the gradient also flows through the temperatures; here
    they are constants.
    """

    name = "adakd"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    scale: Annotated[float, Field(ge=0)] = 0.5
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.1
    rate: Annotated[float, Field(ge=0, lt=1)] = 0.1
    least: Annotated[float, Field(gt=0, le=1)] = 0.1
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    warmup: Annotated[int, Field(ge=0, description="steps before r may change")] = 100

    def __post_init__(self) -> None:
        self._focus = _Focus()

    def temperatures(self) -> Sequence[float]:
        """None: a teacher of k ids does not know the others' mass at every token's temperature."""
        return []

    def prepare(self, tokens: Tokens) -> Tensor:
        """Temperature and weight of each token [n, 2]; the weight of easy tokens is 0."""
        before = self._focus.before(tokens.step)
        seen, scores = tokens.seen(self), tokens.score(Hellinger())
        hard = scores.double()
        before = before.to(hard.device)
        chosen = self._hardest(tokens, torch.where(seen, hard, -math.inf), before[_RATIO]) & seen
        everyone = tokens.over_step(torch.where(chosen, hard, math.nan))
        relative = (hard / everyone.nanmedian()).clamp(min=1e-8)
        temperature = self.temperature * (-self.scale * relative.log().tanh()).exp()
        of_all = tokens.over_step(chosen.double()).sum().clamp(min=1)
        loss = self._mean(tokens, chosen, of_all)
        self._focus.now = self._moved(before, loss, tokens.step)
        weight = chosen * tokens.count(self).double() / of_all
        return torch.stack([temperature, weight], 1).to(scores.dtype)

    def _hardest(self, tokens: Tokens, hard: Tensor, ratio: Tensor) -> Tensor:
        """The max(1, floor(ratio N)) hardest of the N tokens of the term [n]."""
        everyone = tokens.over_step(hard)
        wanted = (ratio * everyone.isfinite().sum()).floor().clamp(min=1)
        ranked = everyone.sort(descending=True).values
        place = (torch.arange(len(ranked), device=ranked.device) < wanted) & ranked.isfinite()
        return hard >= torch.where(place, ranked, math.inf).amin() if len(ranked) else hard > 0

    def _mean(self, tokens: Tokens, chosen: Tensor, of_all: Tensor) -> Tensor:
        values = tokens.score(ReverseKL()).double()
        return tokens.over_step(torch.where(chosen, values, 0.0)).sum() / of_all

    def _moved(self, before: Tensor, loss: Tensor, step: int) -> Tensor:
        """Average, reference and r after this step."""
        average, reference, ratio = before
        average = torch.where(average.isnan(), loss, self.decay * average + (1 - self.decay) * loss)
        if step <= self.warmup:
            return torch.stack([average, reference, ratio])
        reference = torch.where(reference.isnan(), average, reference)
        fell, border = reference - average, self.tolerance * reference
        down, up = fell > border, fell < -border
        shrunk = (ratio * (1 - self.rate)).clamp(min=self.least)
        grown = (ratio * (1 + self.rate)).clamp(max=1.0)
        ratio = torch.where(down, shrunk, torch.where(up, grown, ratio))
        return torch.stack([average, torch.where(down | up, average, reference), ratio])

    def per_token_prepared(
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, prepared: Tensor
    ) -> Tensor:
        """The weighted divergence at each token's temperature [n]."""
        assert teacher is not None, "the engine hands a teacher to a loss that needs one"
        temperature, weight = prepared[:, :1], prepared[:, 1]
        log_q, log_p = (log_probabilities(each / temperature) for each in (student, teacher))
        return weight * temperature[:, 0] ** 2 * kl(log_q, log_p)

    def state_dict(self) -> Mapping[str, Tensor | int | float | str | bytes]:
        """The state that controls r."""
        return {"now": self._focus.now}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state."""
        self._focus.now = state["now"]


class _Focus:
    """Average, reference and r.

    A separate object, because a loss whose attributes change is not compiled.
    """

    def __init__(self) -> None:
        self.now = torch.tensor([math.nan, math.nan, 1.0], dtype=torch.float64)
        self._before, self._step = self.now, 0

    def before(self, step: int) -> Tensor:
        """The state as of the start of this step, however often the step reads it."""
        if step != self._step:
            self._before, self._step = self.now, step
        return self._before


class Hellinger(Loss):
    """The Hellinger distance of both distributions: 0 where equal, at most 1."""

    name = "hellinger-distance"

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """sqrt(1 - sum of sqrt(p q)), in log space [n]."""
        assert teacher is not None
        overlap = ((log_probabilities(student) + log_probabilities(teacher)) / 2).exp().sum(-1)
        return (1 - overlap).clamp(min=0).sqrt()


class ReverseKL(Loss):
    """KL(q || p) at temperature 1."""

    name = "steering"

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """The divergence [n]."""
        assert teacher is not None
        return kl(log_probabilities(student), log_probabilities(teacher))
