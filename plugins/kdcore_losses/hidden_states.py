"""Losses between hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcore import HiddenStatesLoss, component


@component
class HiddenMse(HiddenStatesLoss):
    """The mean squared difference of the states' numbers, averaged over the pairs of layers.

    With a projection that of Jiao et al. 2019 (TinyBERT), arXiv:1909.10351. States of two models
    may differ in size by orders of magnitude; `hidden-cosine` does not see that.
    """

    name = "hidden-mse"

    def per_token_states(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The mean over a state's numbers, then over pairs [n]."""
        return _mean(student, teacher, lambda a, b: (a - b).square().mean(-1))

    def formula(self) -> str:
        """MSE(a, b) of each pair."""
        return _written("MSE", self)


@component
class HiddenCosine(HiddenStatesLoss):
    """1 - cos of the angle between the states, averaged over the pairs of layers.

    As in Sanh et al. 2019 (DistilBERT), arXiv:1910.01108.
    """

    name = "hidden-cosine"

    def per_token_states(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Between 0 and 2 [n]."""
        return _mean(student, teacher, lambda a, b: 1 - F.cosine_similarity(a, b, dim=-1))

    def formula(self) -> str:
        """1 - cos(a, b) of each pair."""
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
