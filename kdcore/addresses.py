"""How the command line names a place in a recipe: `stage.student.loss.kl.temperature`.

Items of a list are counted from 1, or named by their `use` where one item has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import tomli

from kdcore.annotations import kinds_in
from kdcore.build import option_types
from kdcore.complaints import shown
from kdcore.contract import suggestion
from kdcore.locate import KeyPath
from kdcore.tables import KINDS_OF_TABLES, in_stage, shape, stages_of
from kdcore.written import Source, Written

if TYPE_CHECKING:
    from kdcore.plugins import Host


class NoSuchPlaceError(Exception):
    """An address leads nowhere; message and hint say why."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


def parts_of(address: str) -> list[str]:
    """The keys of an address; those with dots in them stand in quotes, as in TOML."""
    try:
        table = tomli.loads(f"{address} = 0")
    except (ValueError, RecursionError):
        parts = address.split(".")
    else:
        parts = []
        while isinstance(table, dict) and len(table) == 1:
            ((part, table),) = table.items()
            parts.append(part)
    if not parts or not all(parts):  # a comment has none
        raise NoSuchPlaceError(f"{address!r} names no key of a recipe")
    return parts


def spelled(path: KeyPath) -> str:
    """An address as one types it."""
    return ".".join(str(part + 1) if isinstance(part, int) else part for part in path)


def find(root: Written, parts: Sequence[str], source: Source) -> tuple[Written, KeyPath]:
    """The value at an address, and its path. Tables that are missing on the way are made."""
    here, path = root, KeyPath()
    for part in parts:
        try:
            key = key_of(here, part, path)
        except NoSuchPlaceError as error:
            raise NoSuchPlaceError(
                error.message, _in_stages(root, (*path, part)) or error.hint
            ) from None
        if isinstance(key, str) and key not in here.table:
            _refuse_to_make(root, (*path, key))
            here.table[key] = Written.of({}, source)
        here = here.items[key] if isinstance(key, int) else here.table[key]
        path = (*path, key)
    return here, path


def key_of(here: Written, part: str, path: KeyPath) -> str | int:
    """What a part of an address means in a table, or which item of a list."""
    if here.is_table:
        return part
    if here.is_list:
        return _index(here.items, part, path)
    raise NoSuchPlaceError(f"{spelled(path)} is {shown(here.value)}, which holds no {part!r}")


def _index(items: Sequence[Written], part: str, path: KeyPath) -> int:
    if part.isdecimal() and 1 <= int(part) <= len(items):
        return int(part) - 1
    named = [at for at, item in enumerate(items) if item.use == part]
    # An earlier --set may have changed the name by which the recipe's author knows the item.
    named = named or [at for at, item in enumerate(items) if item.before == part]
    if len(named) == 1:
        return named[0]
    if named:
        ways = " or ".join(spelled((*path, at)) for at in named)
        raise NoSuchPlaceError(f"{len(named)} items of {spelled(path)} are {part!r}: say {ways}")
    names = [item.use for item in items if item.use]
    there = [f"{spelled((*path, at))} ({item.use})" for at, item in enumerate(items) if item.use]
    raise NoSuchPlaceError(
        f"{spelled(path)} has no item {part!r}{suggestion(part, names)}",
        f"there are: {', '.join(there) or f'{len(items)}, counted from 1'}",
    )


def _refuse_to_make(root: Written, path: KeyPath) -> None:
    """Stages and items of lists are not made on the way to something in them."""
    stages = stages_of(root)
    if path[0] == "stage" and len(path) <= 2:
        near = suggestion(str(path[-1]), stages) if len(path) == 2 else ""
        hint = f"there are: {', '.join(stages)}" if stages else "this recipe has no stages"
        raise NoSuchPlaceError(f"there is no {spelled(path)}{near}", hint)
    if shape(path) is list:
        raise NoSuchPlaceError(f"the recipe has no {spelled(path)}", _in_stages(root, path))


def _in_stages(root: Written, path: KeyPath) -> str:
    """A hint at the stages that have what was looked for at the top level."""
    *outer, last = path
    ways = []
    for name, stage in stages_of(root).items():
        parent, reached = stage.reach(tuple(outer))
        names = [item.use for item in parent.items] if parent.is_list else parent.table
        if path[0] != "stage" and len(reached) == len(outer) and last in names:
            ways.append(f"stage.{name}.{spelled(path)}")
    return f"there is {', '.join(ways)}" if ways else ""


def kind_at(root: Written, path: KeyPath, host: Host) -> str | None:
    """The kind of the component whose table is at a path."""
    stage, inner = in_stage(path)
    start = 2 if inner[:2] == ("student", "patch") else 1
    kind = "patch" if start == 2 else KINDS_OF_TABLES.get(str(inner[0])) if inner else None
    for depth in range(start, len(inner)):
        part = inner[depth]
        if isinstance(part, int):
            continue
        use = root.reach((*stage, *inner[:depth]))[0].use
        if kind is None or use is None or use not in host.provided(kind):
            return None
        types = option_types(host.provided(kind)[use].cls)
        kind = next(iter(kinds_in(types.get(part))), None)
    return kind
