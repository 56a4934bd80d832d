"""The effective objective as one formula, in token-mean units and Python's syntax.

`p(T)` and `q(T)` are teacher's and student's distributions at temperature T, `y` is the label, and
`mean_all`, `mean_kept` and `mean_dropped` average over those tokens of the whole optimizer step.
`done` is the share of the run that is over. Every factor is written out: nothing multiplies a term
that is not in the formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdcore.options import Schedule

if TYPE_CHECKING:
    from kdcore.options import Term


def objective_formula(terms: Sequence[Term], *, selects: bool) -> str:
    """The whole objective, one term a line."""
    lines = [f"{_weight(term.weight)} * {_mean(term, selects)}" for term in terms]
    return "loss = " + "\n     + ".join(lines)


def _weight(weight: float | Schedule) -> str:
    if not isinstance(weight, Schedule):
        return f"{weight:g}"
    start, end, until = weight.start, weight.end, weight.until
    return f"({start:g} + ({end:g} - {start:g}) * min(done / {until:g}, 1))"


def _mean(term: Term, selects: bool) -> str:
    tokens = term.on if selects else "all"
    return f"mean_{tokens}({term.loss.formula()})"
