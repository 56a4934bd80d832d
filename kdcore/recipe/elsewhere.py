"""Options that say where something is or how it is reached, but not what it is.

`Component.elsewhere` lists them; they are not part of a run's identity.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from kdcore.api.options import kinds_in, option_types
from kdcore.recipe.node import KINDS_OF_TABLES, Node

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager


def without_elsewhere(stage: Node, host: PluginManager) -> Node:
    """A stage's merged table without these options, nested components included."""
    tables = {
        key: _of_kinds(each, [KINDS_OF_TABLES[key]], host) if key in KINDS_OF_TABLES else each
        for key, each in stage.table.items()
    }
    student = tables.get("student")
    if student is not None and "patch" in student.table:
        patch = _of_kinds(student.table["patch"], ["patch"], host)
        tables["student"] = student.with_children({**student.table, "patch": patch})
    return stage.with_children(tables)


def _of_kinds(value: Node, kinds: Collection[str], host: PluginManager) -> Node:
    """A value that may contain components of these kinds, also in lists and tables."""
    if value.is_list:
        return value.with_children([_of_kinds(each, kinds, host) for each in value.items])
    if not value.is_table:
        return value
    found = [host.provided(kind).get(str(value.use)) for kind in kinds if value.use]
    cls = next((each.cls for each in found if each is not None), None)
    if cls is None:
        inner = {key: _of_kinds(each, kinds, host) for key, each in value.table.items()}
        return value.with_children(inner)
    types = option_types(cls)
    kept = {key: each for key, each in value.table.items() if key not in cls.elsewhere}
    return value.with_children(
        {key: _of_kinds(each, kinds_in(types.get(key)), host) for key, each in kept.items()}
    )
