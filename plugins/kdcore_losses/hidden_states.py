"""Losses between hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcore import HiddenStatesLoss, component


@component
class HiddenMse(HiddenStatesLoss):
    """Mean squared error between hidden states, averaged over the pairs of layers.

    With a projection this is the loss of Jiao et al. 2019 (TinyBERT), arXiv:1909.10351. The scale
    of hidden states may differ between models by orders of magnitude; `hidden-cosine` ignores it.
    """

    name = "hidden-mse"

    def per_token_states(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The mean over dimensions, then over pairs [n]."""
        return _mean(student, teacher, lambda a, b: (a - b).square().mean(-1))

    def formula(self) -> str:
        """MSE(a, b) for each pair."""
        return _written("MSE", self)


@component
class HiddenCosine(HiddenStatesLoss):
    """1 - cosine similarity of hidden states, averaged over the pairs of layers.

    As in Sanh et al. 2019 (DistilBERT), arXiv:1910.01108.
    """

    name = "hidden-cosine"

    def per_token_states(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Values from 0 to 2 [n]."""
        return _mean(student, teacher, lambda a, b: 1 - F.cosine_similarity(a, b, dim=-1))

    def formula(self) -> str:
        """1 - cos(a, b) for each pair."""
        return _written("1 - cos", self)


def _mean(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    between: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    pairs = zip(student, teacher, strict=True)
    return torch.stack([between(ours, theirs) for ours, theirs in pairs]).mean(0)


def _written(function: str, loss: HiddenStatesLoss) -> str:
    ours = "W(h({}))" if loss.projection == "linear" else "h({})"
    each = [f"{function}({ours.format(a)}, g({b}))" for a, b in loss.layers]
    return each[0] if len(each) == 1 else f"({' + '.join(each)}) / {len(each)}"
