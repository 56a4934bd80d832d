"""Kullback-Leibler divergences: forward, reverse, skewed, symmetric and adaptive."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from kdcore import component
from kdcore_losses.base import (
    BelowOne,
    Inside,
    ScaledDivergence,
    Share,
    kl,
    log_mixture,
    mixture,
    number,
    weighted_sum,
)


@component
class ForwardKL(ScaledDivergence):
    """KL(p || q): mode-covering, the student spreads over all that the teacher finds likely.

    Hinton et al. 2015, arXiv:1503.02531. Includes the teacher's entropy term, so 0 means equality.
    """

    name = "kl"

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Sum of p (log p - log q)."""
        return kl(log_p, log_q)

    def linear_in_teacher(self) -> bool:
        """At temperature 1, where the gradient with respect to the logits is q - p."""
        return self.temperature == 1

    def written(self, p: str, q: str) -> str:
        """KL(p, q)."""
        return f"KL({p}, {q})"


@component
class ReverseKL(ScaledDivergence):
    """KL(q || p): mode-seeking, the student avoids what the teacher finds unlikely.

    Gu et al. 2023 (MiniLLM), arXiv:2306.08543; computed exactly at each token, without sampling.
    """

    name = "reverse-kl"

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Sum of q (log q - log p)."""
        return kl(log_q, log_p)

    def written(self, p: str, q: str) -> str:
        """KL(q, p)."""
        return f"KL({q}, {p})"


@component
class SkewKL(ScaledDivergence):
    """KL(p || skew p + (1 - skew) q): `skew` is the teacher's weight in the mixture.

    Ko et al. 2024 (DistiLLM), arXiv:2402.03898. With skew 0 it equals `kl`.
    """

    name = "skew-kl"
    skew: BelowOne = 0.1

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The KL divergence from p to the mixture."""
        return kl(log_p, log_mixture(log_p, log_q, self.skew))

    def written(self, p: str, q: str) -> str:
        """KL(p, skew * p + (1 - skew) * q)."""
        return f"KL({p}, {mixture(p, q, self.skew)})"


@component
class SkewReverseKL(ScaledDivergence):
    """KL(q || (1 - skew) p + skew q): `skew` is the student's weight in the mixture.

    Ko et al. 2024 (DistiLLM), arXiv:2402.03898. With skew 0 it equals `reverse-kl`.
    """

    name = "skew-reverse-kl"
    skew: BelowOne = 0.1

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """The KL divergence from q to the mixture."""
        return kl(log_q, log_mixture(log_q, log_p, self.skew))

    def written(self, p: str, q: str) -> str:
        """KL(q, skew * q + (1 - skew) * p)."""
        return f"KL({q}, {mixture(q, p, self.skew)})"


@component
class SymmetricKL(ScaledDivergence):
    """forward KL(p || q) + (1 - forward) KL(q || p); at 0.5 half of Jeffreys' divergence."""

    name = "symmetric-kl"
    forward: Share = 0.5

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Both divergences in one sum."""
        # f p (log p - log q) + (1 - f) q (log q - log p) = (f p - (1 - f) q) (log p - log q)
        weights = self.forward * log_p.exp() - (1 - self.forward) * log_q.exp()
        return (weights * (log_p - log_q)).sum(-1)

    def written(self, p: str, q: str) -> str:
        """The weighted sum."""
        return weighted_sum(self.forward, f"KL({p}, {q})", 1 - self.forward, f"KL({q}, {p})")


@component
class AdaptiveKL(ScaledDivergence):
    """w KL(p || q) + (1 - w) KL(q || p), where w is the head's share of the distance |p - q|.

    `form` "head": the tail holds each id such that all ids at most as likely sum to at most 1 -
    `head` of the teacher's mass. "authors": the head holds the likeliest id, and each id such that
    all ids at least as likely sum to at most `head`. w is the sum of |p - q| over the head divided
    by that over all ids; no gradient flows through it. Finding the head sorts the vocabulary, which
    costs more than the rest of the loss.

    Wu et al. 2024, arXiv:2404.02657; their code and ABKD's use the second form.
    """

    name = "adaptive-kl"
    head: Inside = 0.5
    form: Literal["head", "authors"] = "head"

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Both divergences, weighted per token."""
        forward = self._share_of_head(log_p.exp(), log_q.detach().exp())
        return forward * kl(log_p, log_q) + (1 - forward) * kl(log_q, log_p)

    def written(self, p: str, q: str) -> str:
        """AKL(p, q, head), or AKL(p, q, authors=head)."""
        bound = number(self.head)
        return f"AKL({p}, {q}, {bound if self.form == 'head' else f'authors={bound}'})"

    def _share_of_head(self, p: Tensor, q: Tensor) -> Tensor:
        apart = (p - q).abs()
        of_head = apart.masked_fill(p < self._least_of_head(p), 0).sum(-1)
        # At equality this is 0 / 0; both divergences are 0 there, so the weight does not matter.
        return of_head / apart.sum(-1).clamp(min=torch.finfo(p.dtype).tiny)

    def _least_of_head(self, p: Tensor) -> Tensor:
        """The smallest probability in the head [n, 1]."""
        if self.form == "authors":
            falling = p.sort(-1, descending=True).values
            in_tail = falling.cumsum(-1) > self.head
            least = falling.masked_fill(in_tail, math.inf).amin(-1, keepdim=True)
            return torch.minimum(least, falling[..., :1])
        rising = p.sort(-1).values
        in_tail = rising.cumsum(-1) <= 1 - self.head
        return rising.masked_fill(in_tail, math.inf).amin(-1, keepdim=True)
