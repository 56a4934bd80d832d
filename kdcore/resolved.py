"""A stage as a recipe of its own, with every default that was used."""

from __future__ import annotations

from collections.abc import Sequence

from kdcore.api import Component
from kdcore.build import option_values
from kdcore.options import Schedule, Term
from kdcore.stage import Stage


def resolved(stage: Stage, name: str, requires: Sequence[str] = ()) -> str:
    """TOML that runs the stage again. `name` is the recipe's."""
    import tomli_w

    tables = _tables(stage)
    recipe: dict[str, object] = {"name": stage.run_name, **tables}
    if stage.tokenizer is not None and stage.tokenizer_data is not stage.data:
        # Only a stage can have other data than the tokenizer is trained on.
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
        "eval": [table_of(one) for one in stage.evals],
        "log": [table_of(one) for one in stage.loggers],
        "train": _plain(option_values(stage.train)),
    }
    if isinstance(tables["selection"], dict):
        tables["selection"]["scope"] = stage.scope
    return {key: table for key, table in tables.items() if table not in (None, [])}


def table_of(component: Component) -> dict[str, object]:
    """A component as its table in a recipe; options without a value are left out."""
    given = {key: value for key, value in option_values(component).items() if value is not None}
    return {"use": component.name, **{key: _plain(value) for key, value in given.items()}}


def _term(term: Term) -> dict[str, object]:
    return {**table_of(term.loss), "weight": _plain(term.weight), "on": term.on}


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
