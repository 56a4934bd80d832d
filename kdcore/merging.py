"""How recipes are laid over one another: `extends`, and stages over the top level."""

from __future__ import annotations

from collections.abc import Collection

from kdcore.options import RIVALS
from kdcore.written import Written

NONE = "none"
"""`use = "none"` removes what is inherited."""

_NAMING = ("use", "model_type")  # tables that differ in these have other options too


def merge_recipes(base: Written, over: Written) -> Written:
    """`over` laid over `base`: whole recipes, or what a stage says over the top level."""
    merged = dict(base.table)
    for key, value in over.table.items():
        if key not in merged:
            merged[key] = value
        elif key == "stage":
            merged[key] = _merge_stages(merged[key], value)
        else:
            merged[key] = merge(merged[key], value, RIVALS.get(key, ()))
    return over.with_children(merged)


def _merge_stages(base: Written, over: Written) -> Written:
    stages = dict(base.table)
    for name, stage in over.table.items():
        stages[name] = merge_recipes(stages[name], stage) if name in stages else stage
    return over.with_children(stages)


def merge(base: Written, over: Written, rivals: Collection[str] = ()) -> Written:
    """Tables merge; what is no table, or a table with another `use`, takes the other's place.

    Where `over` gives one of the `rivals`, no other of them is inherited.
    """
    if not (base.is_table and over.is_table) or over.whole or _is_another(base, over):
        return over
    gone = {*rivals} - over.table.keys() if {*rivals} & over.table.keys() else set()
    merged = {key: value for key, value in base.table.items() if key not in gone}
    for key, value in over.table.items():
        merged[key] = merge(merged[key], value) if key in merged else value
    return over.with_children(merged)


def _is_another(base: Written, over: Written) -> bool:
    return any(
        key in base.table and key in over.table and base.table[key].value != over.table[key].value
        for key in _NAMING
    )


def without_none(value: Written) -> Written:
    """The same without the tables that `use = "none"` removes."""
    if value.is_table:
        kept = {key: each for key, each in value.table.items() if each.use != NONE}
        return value.with_children({key: without_none(each) for key, each in kept.items()})
    if value.is_list:
        return value.with_children([without_none(v) for v in value.items if v.use != NONE])
    return value
