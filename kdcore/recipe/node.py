"""Recipe values with their place in the file, and the schema of tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kdcore.errors import Diagnostic
from kdcore.recipe.toml_positions import KeyPath, locate

_NUMBERS = {bool, int, float}

TABLES = (
    "student",
    "tokenizer",
    "data",
    "teacher",
    "selection",
    "rollout",
    "train",
    "resources",
)
LISTS = ("loss", "eval", "log")
IN_STAGE = ("seed", "trust_remote_code", *TABLES, *LISTS)
AT_TOP = ("name", "extends", "requires", "stage", "sweep")

KINDS_OF_TABLES = {
    "tokenizer": "tokenizer",
    "data": "data",
    "teacher": "teacher",
    "selection": "selection",
    "rollout": "rollout",
    "loss": "loss",
    "eval": "eval",
    "log": "logger",
}

ENGINE_KEYS = {
    "loss": ("weight", "on", "where"),
    "selection": ("scope",),
    "rollout": ("share", "every", "prompt_tokens", "write_batch"),
}
"""Keys of a component's table that belong to the engine."""


def in_stage(path: KeyPath) -> tuple[KeyPath, KeyPath]:
    """`stage.NAME` (empty at the top level), and the rest of the path."""
    return (path[:2], path[2:]) if path[:1] == ("stage",) else ((), path)


def shape(path: KeyPath) -> type | None:
    """Whether a key holds a list or a table of tables, if the engine defines it."""
    key = in_stage(path)[1]
    if key == ("student", "patch") or (len(key) == 1 and key[0] in LISTS):
        return list
    return dict if len(key) == 1 and key[0] in TABLES else None


def stages_of(root: Node) -> dict[str, Node]:
    """The stages of a recipe by name; empty for a single run."""
    return root.table["stage"].table if "stage" in root.table else {}


@dataclass(frozen=True)
class Source:
    """Where values are written: a recipe file, or a command line option (without text)."""

    name: str
    text: str = ""

    def error(self, path: KeyPath, message: str, hint: str = "") -> Diagnostic:
        """An error at the deepest part of `path` that is written here."""
        line, column = locate(self.text, path)
        shown = self.text.split("\n")[line - 1].replace("\t", " ") if path else ""
        return Diagnostic(message, self.name, line, column, shown, hint)


@dataclass
class Node:
    """A value, and its place in the source. Tables and lists contain further nodes."""

    value: object  # bool, int, float, str, a date; dict[str, Node]; list[Node], tuple of numbers
    source: Source
    path: KeyPath = ()
    before: str = ""  # its `use` before --set changed it
    whole: bool = False  # replaces what it is merged onto

    @classmethod
    def of(cls, value: object, source: Source, path: KeyPath = ()) -> Node:
        """A plain value at `path` of `source`."""
        if isinstance(value, Mapping):
            inner = {key: cls.of(each, source, (*path, key)) for key, each in value.items()}
            return cls(inner, source, path)
        if isinstance(value, list):
            if value and _NUMBERS.issuperset(map(type, value)):
                return cls(tuple(value), source, path)
            items = [cls.of(each, source, (*path, at)) for at, each in enumerate(value)]
            return cls(items, source, path)
        return cls(value, source, path)

    @property
    def is_table(self) -> bool:
        """Whether it is a table."""
        return isinstance(self.value, dict)

    @property
    def is_list(self) -> bool:
        """Whether it is a list."""
        return isinstance(self.value, list | tuple)

    @property
    def table(self) -> dict[str, Node]:
        """The table's values; empty if this is not a table."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> list[Node]:
        """The list's items; empty if this is not a list. Numbers become nodes on demand."""
        if isinstance(self.value, tuple):
            places = ((*self.path, at) for at in range(len(self.value)))
            numbers = zip(self.value, places, strict=True)
            self.value = [Node(number, self.source, path) for number, path in numbers]
        return self.value if isinstance(self.value, list) else []

    @property
    def children(self) -> Iterable[Node]:
        """The items of a table or list, except plain numbers, which refer to nothing."""
        return self.table.values() if self.is_table else self.items if self.has_items else ()

    @property
    def has_items(self) -> bool:
        """Whether it is a list with other items than numbers."""
        return isinstance(self.value, list)

    @property
    def use(self) -> str | None:
        """The component that a table names."""
        named = self.table.get("use")
        return named.value if named is not None and isinstance(named.value, str) else None

    def plain(self) -> object:
        """The value without places, as TOML gives it."""
        if self.is_table:
            return {key: each.plain() for key, each in self.table.items()}
        if self.has_items:
            return [each.plain() for each in self.items]
        return list(self.value) if isinstance(self.value, tuple) else self.value

    def plain_table(self) -> dict[str, object]:
        """The table without places."""
        return {key: each.plain() for key, each in self.table.items()}

    def copy(self) -> Node:
        """A copy with its own tables and lists."""
        if self.is_table:
            return self.with_children({key: each.copy() for key, each in self.table.items()})
        if self.has_items:
            return self.with_children([each.copy() for each in self.items])
        return self.with_children(self.value) if self.is_list else self

    def with_children(self, children: object) -> Node:
        """The same place with other content."""
        return Node(children, self.source, self.path, self.before, self.whole)

    def reach(self, path: KeyPath) -> tuple[Node, KeyPath]:
        """The deepest value along `path`, and the part of `path` that leads to it."""
        here, taken = self, 0
        for part in path:
            inner = here._child(part)
            if inner is None:
                break
            here, taken = inner, taken + 1
        return here, path[:taken]

    def _child(self, part: str | int) -> Node | None:
        if isinstance(part, str):
            return self.table.get(part)
        return self.items[part] if part < len(self.items) else None

    def error(self, message: str, hint: str = "") -> Diagnostic:
        """An error at this value."""
        return self.source.error(self.path, message, hint)
