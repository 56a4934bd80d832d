"""`--set` and `--each`: dotted paths into a recipe.

List items are counted from 1, or named by their `use` if it is unique.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import tomli

from kdcore.api.options import kinds_in, option_types
from kdcore.api.train_options import rivals_of
from kdcore.errors import Diagnostic, UsageError, did_you_mean
from kdcore.recipe.build import shown
from kdcore.recipe.merge import NONE, merge
from kdcore.recipe.node import (
    ENGINE_KEYS,
    KINDS_OF_TABLES,
    Node,
    Source,
    in_stage,
    shape,
    stages_of,
)
from kdcore.recipe.toml_positions import KeyPath

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager


class NoSuchPlaceError(Exception):
    """A path leads nowhere; message and hint say why."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


def parse_path(address: str) -> list[str]:
    """The keys of a path; those with dots are quoted, as in TOML."""
    try:
        table = tomli.loads(f"{address} = 0")
    except (ValueError, RecursionError):
        parts = address.split(".")
    else:
        parts = []
        while isinstance(table, dict) and len(table) == 1:
            ((part, table),) = table.items()
            parts.append(part)
    if not parts or not all(parts):  # true of a comment
        raise NoSuchPlaceError(f"{address!r} names no key of a recipe")
    return parts


def format_path(path: KeyPath) -> str:
    """A path as typed."""
    return ".".join(str(part + 1) if isinstance(part, int) else part for part in path)


def find(root: Node, parts: Sequence[str], source: Source) -> tuple[Node, KeyPath]:
    """The value at a path, and its keys. Creates missing tables on the way."""
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
            here.table[key] = Node.of({}, source)
        here = here.items[key] if isinstance(key, int) else here.table[key]
        path = (*path, key)
    return here, path


def key_of(here: Node, part: str, path: KeyPath) -> str | int:
    """The meaning of a path's part: a table key, or the index of a list item."""
    if here.is_table:
        return part
    if here.is_list:
        return _index(here.items, part, path)
    raise NoSuchPlaceError(f"{format_path(path)} is {shown(here.value)}, which holds no {part!r}")


def _index(items: Sequence[Node], part: str, path: KeyPath) -> int:
    if part.isdecimal() and 1 <= int(part) <= len(items):
        return int(part) - 1
    named = [at for at, item in enumerate(items) if item.use == part]
    # An earlier --set may have changed the name by which the author knows the item.
    named = named or [at for at, item in enumerate(items) if item.before == part]
    if len(named) == 1:
        return named[0]
    if named:
        ways = " or ".join(format_path((*path, at)) for at in named)
        raise NoSuchPlaceError(
            f"{len(named)} items of {format_path(path)} are {part!r}: say {ways}"
        )
    names = [item.use for item in items if item.use]
    there = [
        f"{format_path((*path, at))} ({item.use})" for at, item in enumerate(items) if item.use
    ]
    inside = [at for at, item in enumerate(items) if part in item.table] or [len(items) - 1]
    such = f"; an option is named with its item: {format_path((*path, inside[0]))}.{part}"
    raise NoSuchPlaceError(
        f"{format_path(path)} has no item {part!r}{did_you_mean(part, names)}",
        f"there are: {', '.join(there)}{such}" if there else f"there are {len(items)}, from 1",
    )


def _refuse_to_make(root: Node, path: KeyPath) -> None:
    """Stages and list items are not created on the way to something in them."""
    stages = stages_of(root)
    if path[0] == "stage" and len(path) <= 2:
        near = did_you_mean(str(path[-1]), stages) if len(path) == 2 else ""
        hint = f"there are: {', '.join(stages)}" if stages else "this recipe has no stages"
        raise NoSuchPlaceError(f"there is no {format_path(path)}{near}", hint)
    if shape(path) is list:
        raise NoSuchPlaceError(f"the recipe has no {format_path(path)}", _in_stages(root, path))


def _in_stages(root: Node, path: KeyPath) -> str:
    """A hint at the stages that have what was looked for at the top level."""
    *outer, last = path
    ways = []
    for name, stage in stages_of(root).items():
        parent, reached = stage.reach(tuple(outer))
        names = [item.use for item in parent.items] if parent.is_list else parent.table
        if path[0] != "stage" and len(reached) == len(outer) and last in names:
            ways.append(f"stage.{name}.{format_path(path)}")
    return f"there is {', '.join(ways)}" if ways else ""


def kind_at(root: Node, path: KeyPath, host: PluginManager) -> str | None:
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


def add_to_list(root: Node, key: str, name: str, flag: str) -> None:
    """`--log NAME`, `--use NAME`: add one with defaults to every stage that does not name it."""
    source = Source(f"{flag} {name}")
    root.table.setdefault(key, Node.of([], source))
    for table in (root, *stages_of(root).values()):
        found = table.table.get(key)
        if found is not None and all(item.use != name for item in found.items):
            found.items.append(Node.of({"use": name}, source))


@dataclass(frozen=True, eq=False)
class Assignment:
    """A key of a recipe with its new value, and where that is written."""

    address: str
    value: Node

    @property
    def text(self) -> str:
        """In the syntax of `--set`."""
        return f"{self.address}={as_toml(self.value.plain())}"


def as_toml(value: object) -> str:
    """A value as one line of TOML."""
    import tomli_w

    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{json.dumps(key)} = {as_toml(value[key])}' for key in value)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    return tomli_w.dumps({"x": value}).partition("=")[2].strip()


Sets = Sequence[str | Assignment]


@dataclass
class Overrides:
    """Applies `--set` to a recipe; collects errors and notes."""

    root: Node
    host: PluginManager
    errors: list[Diagnostic]
    notes: list[str]

    def apply(self, sets: Sets) -> None:
        """In the given order, but top level first: stages inherit from it."""
        for each in sorted(sets, key=_is_in_stage):
            if isinstance(each, Assignment):
                place = each.value
            else:
                place = Node(None, Source(f"--set {each}"))
            try:
                self._set(each, place.source)
            except NoSuchPlaceError as error:
                self.errors.append(place.error(error.message, error.hint))

    def _set(self, given: str | Assignment, source: Source) -> None:
        """`K=V`: V is TOML, else a text; an empty V removes the key."""
        new: Node | None
        if isinstance(given, Assignment):
            address, new = given.address, given.value.copy()
        else:
            address, equals, text = given.partition("=")
            if not equals:
                raise NoSuchPlaceError(f"{given!r} is not KEY=VALUE", "KEY= removes a key")
            new = Node.of(parse_value(text), source) if text else None
        parts = parse_path(address.strip())
        if parts[0] in ("extends", "requires"):
            raise NoSuchPlaceError(f"{parts[0]} is for files only")
        self._own(parts)
        parent, path = find(self.root, parts[:-1], source)
        key = key_of(parent, parts[-1], path)
        if new is not None:
            self._put(parent, (*path, key), new)
        else:
            self._remove(parent, (*path, key), source)

    def _own(self, parts: Sequence[str]) -> None:
        """Before a change, a stage's table copies what it inherits from the top level."""
        stages = stages_of(self.root) if parts[0] == "stage" and len(parts) >= 4 else {}
        if stages and parts[1] in stages and parts[2] in self.root.table:
            stage, inherited = stages[parts[1]], self.root.table[parts[2]]
            own = stage.table.get(parts[2])
            merged = merge(inherited, own, parts[2]) if own else inherited
            stage.table[parts[2]] = merged.copy()
            stage.table[parts[2]].whole = True

    def _put(self, parent: Node, path: KeyPath, value: Node) -> None:
        key = path[-1]
        if isinstance(key, int):
            parent.items[key] = value
            return
        if path[:-1] == ("stage",) and key not in parent.table:
            raise NoSuchPlaceError(
                f"there is no {format_path(path)}{did_you_mean(key, parent.table)}"
            )
        if key == "use":
            self._drop_options(parent, path[:-1], value)
        for rival in _rivals(path):
            parent.table.pop(rival, None)
        value.whole = True
        parent.table[key] = value
        self._note_stages(path)

    def _remove(self, parent: Node, path: KeyPath, source: Source) -> None:
        key = path[-1]
        if isinstance(key, int):
            del parent.items[key]
            return
        stage, inner = in_stage(path)
        is_inherited = bool(stage) and len(inner) == 1 and key in self.root.table
        if key not in parent.table and not is_inherited:
            near = did_you_mean(key, parent.table)
            raise NoSuchPlaceError(
                f"the recipe gives no {format_path(path)}, so none is removed{near}"
            )
        parent.table.pop(key, None)
        if is_inherited:
            parent.table[key] = Node.of({"use": NONE}, source)

    def _drop_options(self, table: Node, path: KeyPath, use: Node) -> None:
        """A replaced component keeps the options that the new one also has."""
        kind, new = kind_at(self.root, path, self.host), use.plain()
        if kind is None or not isinstance(new, str) or table.use in (None, new):
            return
        provided = self.host.provided(kind)
        if new not in provided:
            return
        known = {"use", *option_types(provided[new].cls), *ENGINE_KEYS.get(kind, ())}
        dropped = [key for key in table.table if key not in known]
        table.before = str(table.use)
        for key in dropped:
            del table.table[key]
        if dropped:
            options = ", ".join(dropped)
            self.notes.append(
                f"{format_path(path)} is now {new!r}, which has no {options}: dropped"
            )

    def _note_stages(self, path: KeyPath) -> None:
        """Note stages that override the changed top-level key."""
        said = [path, *((*path[:-1], rival) for rival in _rivals(path))]
        others = [
            f"stage.{name}.{format_path(other)}"
            for name, stage in stages_of(self.root).items()
            for other in said
            if stage.reach(other)[1] == other
        ]
        if others and path[0] != "stage":
            says = f"{format_path(path)} is set, but where stages say otherwise"
            self.notes.append(f"{says}: {', '.join(others)}")


def _is_in_stage(given: str | Assignment) -> bool:
    address = given.address if isinstance(given, Assignment) else given
    return address.lstrip().startswith("stage.")


def _rivals(path: KeyPath) -> list[str]:
    inner = in_stage(path)[1]
    return sorted(rivals_of(str(inner[0]), str(inner[1]))) if len(inner) == 2 else []


def parse_value(text: str) -> object:
    """The text after `K=`: TOML, else a text."""
    try:
        parsed = tomli.loads(f"value = {text}")
    except tomli.TOMLDecodeError as error:
        if text.lstrip().startswith(("[", "{")):
            raise NoSuchPlaceError(
                f"{text} is not TOML: {error.msg[0].lower()}{error.msg[1:]}",
                'write a list as ["a", "b"] and a table as {use = "kl"}, in quotes for the shell',
            ) from None
        return text
    except (ValueError, RecursionError):  # too many digits, or nested too deeply
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


_PIECE = re.compile(
    r"""
    "(?:\\.|[^"\\])*"   # texts, in which commas and brackets mean nothing
  | '[^']*'
  | [\[\]{},]
  | [^\[\]{},"']+
  | ["']                # one without its partner is a letter like any other
""",
    re.VERBOSE,
)


def expand_grid(sets: Sequence[str], eaches: Sequence[str]) -> list[tuple[str, list[str]]]:
    """All combinations, as a label (`seed=1 loss.kl.use=kl`; empty without `--each`) and sets."""
    choices = [_choices(each) for each in eaches]
    _refuse_twice([variants[0].partition("=")[0] for variants in choices])
    return [(" ".join(chosen), [*sets, *chosen]) for chosen in product(*choices)]


def varied(eaches: Sequence[str]) -> dict[str, list[Assignment]]:
    """The key of every `--each K=a,b`, with an assignment per value."""
    keys = [each.partition("=")[0].strip() for each in eaches]
    _refuse_twice(keys)
    return dict(zip(keys, map(_assignments, keys, eaches), strict=True))


def _refuse_twice(keys: Sequence[str]) -> None:
    for key in keys:
        if keys.count(key) > 1:
            raise UsageError(f"--each {key} is given twice; name all values in one")


def _assignments(key: str, each: str) -> list[Assignment]:
    source = Source(f"--each {each}")
    values = [choice.partition("=")[2] for choice in _choices(each)]
    return [Assignment(key, Node.of(parse_value(value), source)) for value in values]


def _choices(each: str) -> list[str]:
    key, equals, values = each.partition("=")
    split = _at_commas(values)
    if not key or not equals or not all(split):
        raise UsageError(f"--each {each}: write K=a,b,c, such as --each seed=0,1,2")
    if len(split) == 1 and _RANGE.fullmatch(split[0]):
        raise UsageError(f"--each {each}: write every value, such as --each {key}=0,1,2")
    return [f"{key}={value}" for value in split]


_RANGE = re.compile(r"\d+\s*(\.\.\.?|:|-)\s*\d+|range\(.*\)")


def _at_commas(text: str) -> list[str]:
    """The text, split at commas outside brackets and quotes."""
    values, depth = [""], 0
    for piece in _PIECE.findall(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(piece, 0)
        if piece == "," and depth == 0:
            values.append("")
        else:
            values[-1] += piece
    return [value.strip() for value in values]
