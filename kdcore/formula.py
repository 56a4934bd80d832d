"""The effective objective as one formula, in token-mean units and Python's syntax.

`p(T)` and `q(T)` are teacher's and student's distributions at temperature T, `y` is the label, and
`mean_all`, `mean_kept` and `mean_dropped` average over those tokens of the whole optimizer step.
`done` is the share of the run that is over. Every factor is written out: nothing multiplies a term
that is not in the formula.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kdcore.blame import asked
from kdcore.options import Schedule

if TYPE_CHECKING:
    from kdcore.api import Teacher
    from kdcore.options import Term

_START, _NEXT = "loss = ", "\n     + "

_SYMBOLS: Mapping[str, tuple[str, str]] = {
    "mean_all": ("mean_all", "the mean over the tokens that the optimizer step predicts"),
    "mean_kept": ("mean_kept", "the mean over those tokens that the selection keeps"),
    "mean_dropped": ("mean_dropped", "the mean over those tokens that the selection drops"),
    "done": ("done", "the share of the run's steps that are done"),
    "p": ("p(T)", "the teacher's distribution over the next token, softmax(logits / T)"),
    "q": ("q(T)", "the student's distribution over the next token, softmax(logits / T)"),
    "y": ("y", "the next token in the text"),
    "CE": ("CE(q, y)", "-log of the probability that q gives to y, in nats"),
    "KL": ("KL(a, b)", "the sum of a * log(a / b) over the vocabulary, in nats"),
    "TV": ("TV(a, b)", "half the sum of abs(a - b) over the vocabulary"),
    "sum": ("sum", "the sum over the vocabulary"),
}
"""Name in a formula -> how it is written, and what it stands for."""

_PLAIN = ("min", "max", "abs", "log", "exp")  # what needs no explanation


def objective_formula(
    terms: Sequence[Term], *, selects: bool, teacher: Teacher | None = None
) -> str:
    """The whole objective, one term a line.

    Where the teacher knows k ids only, `p_k` and `q_k` are the distributions over these and all
    others as one.
    """
    known = _known(teacher)
    each = (f"{_weight(term.weight)} * {_mean(term, selects, known)}" for term in terms)
    return _START + _NEXT.join(each)


def symbols_of(
    terms: Sequence[Term], *, selects: bool, teacher: Teacher | None = None
) -> list[tuple[str, str]]:
    """The symbols of the objective in order of appearance, each with its meaning in words.

    A function that only some loss knows is explained by the first line of the loss's docstring.
    """
    known = {**_SYMBOLS, **_coarse_symbols(teacher)}
    found: dict[str, tuple[str, str]] = {}
    for term in terms:
        alone = objective_formula([term], selects=selects, teacher=teacher).removeprefix(_START)
        for name in _names(alone):
            if name not in _PLAIN:
                found.setdefault(name, known.get(name, (name, _about(term))))
    return list(found.values())


def _coarse_symbols(teacher: Teacher | None) -> dict[str, tuple[str, str]]:
    """What the distributions over some ids and the others as one are called, and are."""
    if teacher is None or (k := _known(teacher)) is None:
        return {}
    p, q = f"p_{k}", f"q_{k}"
    drawn = f"the shares that {k} ids drawn from the teacher's distribution have of the draws"
    likeliest = (
        f"the teacher's distribution at T = 1 over its {k} likeliest ids and all others as one"
    )
    of_teacher = drawn if teacher.is_estimate() else likeliest
    return {
        p: (f"{p}(T)", f"{of_teacher}, then softmax(log / T)"),
        q: (
            f"{q}(T)",
            f"the student's at T = 1 over the ids of {p} and all others as one, then the same",
        ),
    }


def _weight(weight: float | Schedule) -> str:
    if not isinstance(weight, Schedule):
        return _number(weight)
    start, end, until = map(_number, (weight.start, weight.end, weight.until))
    return f"({start} + ({end} - {start}) * min(done / {until}, 1))"


def _number(value: float) -> str:
    """Enough digits to compute with, without the rounding of 1 - 0.7."""
    return f"{value:.12g}"


def _mean(term: Term, selects: bool, known: int | None) -> str:
    tokens = term.on if selects else "all"
    formula: str = asked(term.loss, "formula", of=str)
    if known is not None and term.loss.needs_teacher:
        formula = re.sub(r"\b([pq])(?=\()", rf"\1_{known}", formula)
    return f"mean_{tokens}({formula})"


def _known(teacher: Teacher | None) -> int | None:
    found: int | None = None
    if teacher is not None:
        found = asked(teacher, "ids_known", of=(int, type(None)))
    return found


def _about(term: Term) -> str:
    said = (inspect.getdoc(type(term.loss)) or "").split("\n")[0]
    return f"of the loss {term.use!r}" + (f": {said}" if said else "")


def _names(formula: str) -> list[str]:
    """The names in an expression from left to right; none where it is not Python's syntax."""
    try:
        tree = ast.parse(formula, mode="eval")
    except SyntaxError:
        return []
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return [node.id for node in sorted(names, key=lambda node: (node.lineno, node.col_offset))]
