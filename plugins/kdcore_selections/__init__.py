"""Selections: a share of the tokens, combinations of selections, and weights."""

from __future__ import annotations

from collections.abc import Sequence

from kdcore import Selection, hookimpl
from kdcore_selections.agreement import Agreement
from kdcore_selections.combined import And, Not, Or
from kdcore_selections.gls import GlobalSelection
from kdcore_selections.soft import Soft
from kdcore_selections.top import Band, Entropy, Hardest, Random, Rho, Score


@hookimpl
def kdcore_selections() -> Sequence[type[Selection]]:
    """The selections of this plugin."""
    return [
        Rho,
        Random,
        Hardest,
        Entropy,
        Score,
        Band,
        Agreement,
        And,
        Or,
        Not,
        Soft,
        GlobalSelection,
    ]
