"""A recipe's objective as a formula, and the recipe with all defaults.

`p(T)` and `q(T)` are teacher's and student's distributions at temperature T, `y` is the label, and
`mean_all`, `mean_kept` and `mean_dropped` average over those tokens of the whole optimizer step.
`done` is the share of the run that is complete. Every factor is explicit: no term has a factor that
is missing from the formula.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdcore.api.component import Component
from kdcore.api.loss import HiddenStatesLoss, Term
from kdcore.api.options import nested_options, option_values
from kdcore.api.run import Stage
from kdcore.api.schedule import Schedule
from kdcore.data.where import values_in
from kdcore.guard import call_checked

if TYPE_CHECKING:
    from kdcore.api.teacher import Teacher
    from kdcore.api.train_options import TrainOptions


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
    "H": ("H(a)", "the entropy of a over the vocabulary, in nats"),
    "TV": ("TV(a, b)", "half the sum of abs(a - b) over the vocabulary"),
    "sum": ("sum", "the sum over the vocabulary"),
}
"""Name in a formula -> its notation and its meaning."""

_STATES: Mapping[str, tuple[str, str]] = {
    "h": ("h(i)", "the student's hidden state i: 0 the embeddings, -1 behind the last norm"),
    "g": ("g(i)", "the teacher's hidden state i"),
    "W": ("W(a)", "a matrix that is learned for each pair of layers, times a"),
}
"""The same for losses on hidden states."""

_COLUMN = "a column of the document of the token that is predicted"

_PLAIN = ("min", "max", "abs", "log", "exp")  # functions that need no explanation


def objective_formula(
    terms: Sequence[Term], *, selects: bool, teacher: Teacher | None = None
) -> str:
    """The whole objective, one term per line.

    If the teacher covers only k ids, `p_k` and `q_k` are the distributions over these and one
    bucket of all others.
    """
    known = _known(teacher)
    each = (f"{_weight(term.weight)} * {_mean(term, selects, known)}" for term in terms)
    return _START + _NEXT.join(each)


def symbols_of(
    terms: Sequence[Term], *, selects: bool, teacher: Teacher | None = None
) -> list[tuple[str, str]]:
    """The symbols of the objective in order of appearance, with their meaning in words.

    Functions that only a loss knows are explained by the first line of its docstring.
    """
    known = {**_SYMBOLS, **_coarse_symbols(teacher, terms)}
    found: dict[str, tuple[str, str]] = {}
    for term in terms:
        alone = objective_formula([term], selects=selects, teacher=teacher).removeprefix(_START)
        columns = dict.fromkeys(term.where or (), _COLUMN)
        own = {**known, **_STATES} if isinstance(term.loss, HiddenStatesLoss) else known
        for name in _names(alone):
            if name not in _PLAIN:
                symbol = (name, columns.get(name) or _about(term))
                found.setdefault(name, own.get(name, symbol))
    return list(found.values())


def _coarse_symbols(teacher: Teacher | None, terms: Sequence[Term]) -> dict[str, tuple[str, str]]:
    """Notation and meaning of distributions with a bucket of other ids."""
    if teacher is None or (k := _known(teacher)) is None:
        return {}
    p, q = f"p_{k}", f"q_{k}"
    if not teacher.is_estimate() and _knows_others(teacher, terms):
        return {
            p: (f"{p}(T)", f"p(T) over the teacher's {k} likeliest ids and all others as one"),
            q: (f"{q}(T)", f"q(T) over the ids of {p} and all others as one"),
        }
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


def _knows_others(teacher: Teacher, terms: Sequence[Term]) -> bool:
    """Whether the teacher gives the mass of other ids at every temperature of the losses."""
    losses = [term.loss for term in terms if term.loss.needs_teacher]
    temperatures = [at for loss in losses for at in call_checked(loss, "temperatures", of=Sequence)]
    return all(
        call_checked(teacher, "knows_others_at", at, of=(bool, type(None))) for at in temperatures
    )


def _weight(weight: float | Schedule) -> str:
    # Enough digits to compute with, without the rounding of 1 - 0.7.
    return str(weight) if isinstance(weight, Schedule) else f"{weight:.12g}"


def _mean(term: Term, selects: bool, known: int | None) -> str:
    tokens = term.on if selects else "all"
    formula: str = call_checked(term.loss, "formula", of=str)
    if known is not None and term.loss.needs_teacher:
        formula = re.sub(r"\b([pq])(?=\()", rf"\1_{known or 'shared'}", formula)
    return f"mean_{tokens}{_where(term)}({formula})"


def _where(term: Term) -> str:
    """The documents that a term sees, as the index of its mean."""
    each = []
    for name, given in (term.where or {}).items():
        values = [json.dumps(value, ensure_ascii=False) for value in values_in(given)]
        several = len(values) > 1
        each.append(f"{name} in ({', '.join(values)})" if several else f"{name} == {values[0]}")
    return f"[{' and '.join(each)}]" if each else ""


def _known(teacher: Teacher | None) -> int | None:
    found: int | None = None
    if teacher is not None:
        found = call_checked(teacher, "ids_known", of=(int, type(None)))
    return found


def _about(term: Term) -> str:
    said = (inspect.getdoc(type(term.loss)) or "").split("\n")[0]
    return f"of the loss {term.use!r}" + (f": {said}" if said else "")


def _names(formula: str) -> list[str]:
    """The names in an expression from left to right; empty if it is not Python syntax."""
    try:
        tree = ast.parse(formula, mode="eval")
    except SyntaxError:
        return []
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return [node.id for node in sorted(names, key=lambda node: (node.lineno, node.col_offset))]


def resolved(stage: Stage, name: str, requires: Sequence[str] = ()) -> str:
    """TOML that reproduces the stage. `name` is the recipe's."""
    import tomli_w

    tables = _tables(stage)
    recipe: dict[str, object] = {"name": stage.run_name, **tables}
    if stage.tokenizer is not None and stage.tokenizer_data is not stage.data:
        # Only a stage can have other data than its tokenizer is trained on.
        top = {"tokenizer": tables.pop("tokenizer"), "data": table_of(stage.tokenizer_data)}
        recipe = {"name": name, **top, "stage": {stage.name: tables}}
    if requires:
        recipe = {"requires": list(requires), **recipe}
    return tomli_w.dumps(recipe)


def _tables(stage: Stage) -> dict[str, object]:
    student = {key: _plain(value) for key, value in option_values(stage.student).items()}
    tables: dict[str, object] = {
        "seed": stage.seed,
        "trust_remote_code": list(stage.trusted),
        "student": {key: each for key, each in student.items() if each not in (None, [])},
        "tokenizer": _plain(stage.tokenizer),
        "data": table_of(stage.data),
        "teacher": _plain(stage.teacher),
        "loss": [_term(term) for term in stage.terms],
        "selection": _plain(stage.selection),
        "rollout": _plain(stage.rollout),
        "eval": [table_of(one) for one in stage.evals],
        "log": [table_of(one) for one in stage.loggers],
        "train": _plain(_train(stage.train)),
    }
    if isinstance(tables["selection"], dict):
        tables["selection"]["scope"] = stage.scope
    if isinstance(tables["rollout"], dict):
        written = option_values(stage.writing).items()
        tables["rollout"] |= {key: _plain(value) for key, value in written}
    return {key: table for key, table in tables.items() if table not in (None, [])}


def _train(options: TrainOptions) -> dict[str, object]:
    """Without the default of a key that another one replaces."""
    values = option_values(options)
    gone = {"batch"} if options.batch_documents is not None else set()
    return {key: value for key, value in values.items() if key not in gone}


def table_of(component: Component) -> dict[str, object]:
    """A component as a recipe table, without options that have no value."""
    given = {key: value for key, value in option_values(component).items() if value is not None}
    inside: dict[str, Any] = {key: given.pop(key, ()) for key in nested_options(type(component))}
    table: dict[str, Any] = {key: _plain(value) for key, value in given.items()}
    for key, option in nested_options(type(component)).items():
        for nested, value in zip(table.get(option, ()), inside[key], strict=False):
            if value is not None:
                nested[key] = _plain(value)
    return {"use": component.name, **table}


def _term(term: Term) -> dict[str, object]:
    table = {**table_of(term.loss), "weight": _plain(term.weight), "on": term.on}
    return table if term.where is None else {**table, "where": _plain(term.where)}


def _plain(value: object) -> object:
    if isinstance(value, Component):
        return table_of(value)
    if isinstance(value, Schedule):
        return option_values(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value
