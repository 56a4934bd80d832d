"""Losses and a selection of other frameworks and papers, in kdcore's public API."""

from __future__ import annotations

from collections.abc import Sequence

from kdcore import Loss, Selection, hookimpl
from kdcore_more_losses.adaptive import AdaKD
from kdcore_more_losses.divergences import BDKD, Cosine, Top1CrossEntropy
from kdcore_more_losses.importance import ImportanceWeightedOPD
from kdcore_more_losses.position import Position
from kdcore_more_losses.ranking import HierarchicalRanking, Hinge, Logistic


@hookimpl
def kdcore_losses() -> Sequence[type[Loss]]:
    """`[[loss]] use = "hinge"`, and so on."""
    return [
        AdaKD,
        BDKD,
        Cosine,
        HierarchicalRanking,
        Hinge,
        ImportanceWeightedOPD,
        Logistic,
        Top1CrossEntropy,
    ]


@hookimpl
def kdcore_selections() -> Sequence[type[Selection]]:
    """`[selection] use = "position"`."""
    return [Position]
