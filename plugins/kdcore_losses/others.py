"""Further divergences: Jensen-Shannon, total variation, alpha-beta, and an entropy-gated KL."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcore import component
from kdcore_losses.base import (
    Divergence,
    NotNegative,
    ScaledDivergence,
    Share,
    kl,
    log_mixture,
    mixture,
    number,
    weighted_sum,
)


@component
class JensenShannon(ScaledDivergence):
    """beta KL(p || m) + (1 - beta) KL(q || m), where m = beta p + (1 - beta) q.

    Agarwal et al. 2023 (GKD), arXiv:2306.13649; by their convention beta 0 is `kl` and beta 1 is
    `reverse-kl`. Near these ends the values vanish like beta (1 - beta). `normalise` divides by
    that factor, which makes the ends continuous, so that a sweep over beta varies the shape and not
    the size. In float32, values of beta within 0.001 of 0 or 1 lose digits (0 and 1 themselves do
    not).
    """

    name = "jsd"
    beta: Share = 0.5
    normalise: bool = False

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Both divergences to the mixture; at the ends, the limit."""
        if self.beta in (0, 1):
            return kl(log_p, log_q) if self.beta == 0 else kl(log_q, log_p)
        # The gradient through log m is -sum(dm) = 0, because m sums to one: leave it out.
        log_m = log_mixture(log_p, log_q.detach(), self.beta)
        both = self.beta * kl(log_p, log_m) + (1 - self.beta) * kl(log_q, log_m)
        return both / (self.beta * (1 - self.beta)) if self.normalise else both

    def written(self, p: str, q: str) -> str:
        """The weighted sum; at the ends, the limit."""
        if self.beta in (0, 1):
            return f"KL({p}, {q})" if self.beta == 0 else f"KL({q}, {p})"
        m = mixture(p, q, self.beta)
        both = weighted_sum(self.beta, f"KL({p}, {m})", 1 - self.beta, f"KL({q}, {m})")
        return f"{both} / {number(self.beta * (1 - self.beta))}" if self.normalise else both


@component
class TotalVariation(Divergence):
    """Total variation: half the sum of |p - q|, between 0 and 1.

    No T^2 factor, as its gradient does not shrink like 1/T^2. Wen et al. 2023 (f-distill),
    arXiv:2307.15190.
    """

    name = "tvd"

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Half the L1 distance."""
        return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2

    def written(self, p: str, q: str) -> str:
        """TV(p, q)."""
        return f"TV({p}, {q})"


@component
class AlphaBeta(ScaledDivergence):
    """The alpha-beta divergence of Cichocki et al.: (1, 0) is `kl`, (0, 1) is `reverse-kl`.

    -1 / (alpha beta) times the sum of p^alpha q^beta - alpha/s p^s - beta/s q^s, s = alpha + beta;
    the limit where alpha or beta is 0.

    Wang et al. 2025 (ABKD), arXiv:2505.04560.
    """

    name = "alpha-beta"
    alpha: NotNegative = 0.2
    beta: NotNegative = 0.7

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The divergence, or its limit where alpha or beta is 0."""
        alpha, beta = self.alpha, self.beta
        if alpha == 0 or beta == 0:
            return self._limit(log_p, log_q)
        # Each summand is L^s (a_L + a_l r^s - s r^a_l) / (alpha beta s), where L is the larger of p
        # and q, r <= 1 the ratio, a_L and a_l the exponents of larger and smaller. expm1 keeps
        # digits at r near 1.
        gap, p_is_larger = -(log_p - log_q).abs(), log_p > log_q
        of_p, of_q = log_p.new_full((), alpha), log_p.new_full((), beta)
        of_larger = torch.where(p_is_larger, of_p, of_q)
        of_smaller = torch.where(p_is_larger, of_q, of_p)
        one, other = torch.expm1(of_larger * gap), torch.expm1(of_smaller * gap)
        bracket = of_smaller * (other + 1) * one - of_larger * other
        larger = torch.maximum(log_p, log_q)
        whole = alpha + beta
        return (bracket * (whole * larger).exp()).sum(-1) / (alpha * beta * whole)

    def written(self, p: str, q: str) -> str:
        """AB(p, q, alpha, beta)."""
        return f"AB({p}, {q}, {number(self.alpha)}, {number(self.beta)})"

    def _limit(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        if self.alpha == self.beta == 0:
            return (log_p - log_q).square().sum(-1) / 2
        if self.beta == 0:
            return _power_kl(log_p, log_q, self.alpha)
        return _power_kl(log_q, log_p, self.beta)


@component
class EntropyOPD(ScaledDivergence):
    """KL(q || p), plus KL(p || q) where the teacher is uncertain, to cover its alternatives there.

    The teacher is uncertain where the entropy of p exceeds `threshold` nats. For a teacher that
    knows k ids, the entropy counts all others as one id and is therefore smaller.

    Jin et al. 2026 (entropy-aware on-policy distillation), arXiv:2603.07079; intended for tokens
    that the student wrote.
    """

    name = "entropy-opd"
    threshold: NotNegative = 0.8

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The reverse divergence, plus the forward one where the gate is open."""
        unsure = -(log_p.exp() * log_p).sum(-1) > self.threshold
        return kl(log_q, log_p) + unsure * kl(log_p, log_q)

    def written(self, p: str, q: str) -> str:
        """The sum of both, with the gate."""
        return f"(KL({q}, {p}) + (H({p}) > {number(self.threshold)}) * KL({p}, {q}))"


def _power_kl(log_a: Tensor, log_b: Tensor, power: float) -> Tensor:
    """The unnormalised KL divergence of a^power and b^power, divided by power^2.

    The sum of a (d - 1 + e^-d), d = log(a / b), with the larger of both factored out: written as
    a d - a + b, it loses all digits where a and b are close.
    """
    log_a, log_b = power * log_a, power * log_b
    gap = log_a - log_b
    down = torch.where(gap < 0, gap, -gap)  # not -abs(gap): its gradient at 0 would not cancel
    bracket = torch.where(gap < 0, down * down.exp() - torch.expm1(down), gap + torch.expm1(down))
    return (bracket * torch.maximum(log_a, log_b).exp()).sum(-1) / power**2
