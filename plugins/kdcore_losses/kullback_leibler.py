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
    """KL(p || q): the student covers all that the teacher finds likely.

    Hinton et al. 2015, arXiv:1503.02531. The teacher's entropy is kept in: 0 means equality.
    """

    name = "kl"

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Sum of p (log p - log q)."""
        return kl(log_p, log_q)

    def linear_in_teacher(self) -> bool:
        """At temperature 1: the gradient is q - p."""
        return self.temperature == 1

    def written(self, p: str, q: str) -> str:
        """KL(p, q)."""
        return f"KL({p}, {q})"


@component
class ReverseKL(ScaledDivergence):
    """KL(q || p): the student avoids all that the teacher finds unlikely.

    Gu et al. 2023 (MiniLLM), arXiv:2306.08543; here exact at each token, without sampling.
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

    Ko et al. 2024 (DistiLLM), arXiv:2402.03898. At skew 0 it is `kl`.
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

    Ko et al. 2024 (DistiLLM), arXiv:2402.03898. At skew 0 it is `reverse-kl`.
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
    """forward KL(p || q) + (1 - forward) KL(q || p): half of Jeffreys' divergence at 0.5."""

    name = "symmetric-kl"
    forward: Share = 0.5

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Both divergences in one sum."""
        weights = self.forward * log_p.exp() - (1 - self.forward) * log_q.exp()
        return (weights * (log_p - log_q)).sum(-1)

    def written(self, p: str, q: str) -> str:
        """The weighted sum."""
        return weighted_sum(self.forward, f"KL({p}, {q})", 1 - self.forward, f"KL({q}, {p})")


@component
class AdaptiveKL(ScaledDivergence):
    """w KL(p || q) + (1 - w) KL(q || p): w is the head's share of the distance between p and q.

    `form` "head": an id is in the tail where all ids no likelier than it hold at most 1 - `head` of
    the teacher's mass. "authors": the likeliest id is in the head, and each other one where all ids
    no less likely than it hold at most `head`. w is the sum of |p - q| over the head, divided by
    that over all ids; no gradient goes through it. Finding the head sorts the vocabulary, which
    costs more than the rest of the loss.

    Wu et al. 2024, arXiv:2404.02657; their code and that of ABKD have the second form.
    """

    name = "adaptive-kl"
    head: Inside = 0.5
    form: Literal["head", "authors"] = "head"

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Both divergences, weighted token by token."""
        forward = self._share_of_head(log_p.exp(), log_q.detach().exp())
        return forward * kl(log_p, log_q) + (1 - forward) * kl(log_q, log_p)

    def written(self, p: str, q: str) -> str:
        """AKL(p, q, head), or AKL(p, q, authors=head)."""
        bound = number(self.head)
        return f"AKL({p}, {q}, {bound if self.form == 'head' else f'authors={bound}'})"

    def _share_of_head(self, p: Tensor, q: Tensor) -> Tensor:
        apart = (p - q).abs()
        of_head = apart.masked_fill(p < self._least_of_head(p), 0).sum(-1)
        # At equality this is 0 / 0, and then both divergences are 0 whatever their weights.
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
