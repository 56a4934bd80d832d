"""Tables -> components, with a message for each wrong option."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

import tomli
from pydantic import ValidationError

from kdcore.api.component import Component
from kdcore.api.options import (
    choices,
    inner_type,
    kind_of,
    kinds_in,
    members,
    nested_options,
    option_types,
    type_in_words,
)
from kdcore.api.schedule import Schedule
from kdcore.errors import Diagnostic, PluginError, UsageError, did_you_mean
from kdcore.guard import defined_in
from kdcore.recipe.node import Node
from kdcore.recipe.other_words import WORDS, ours
from kdcore.recipe.toml_positions import KeyPath

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager


Errors = Sequence[Mapping[str, Any]]
_UNBUILT = object()  # a nested component whose errors were reported
_LONGEST = 60  # characters of a value shown in a message
_SHORTER = {"greater than or equal to": "at least", "less than or equal to": "at most"}


def validation_errors(
    error: ValidationError,
    table: Node,
    types: Mapping[str, Any],
    what: str,
    without: Collection[str] = (),
) -> Iterator[Diagnostic]:
    """An error for each invalid value; `without` lists options that were reported before."""
    by_path: dict[KeyPath, list[Mapping[str, Any]]] = {}
    for each in error.errors(include_url=False):
        if each["loc"] and each["loc"][0] in without:
            continue
        # After the path, pydantic names the members of a union.
        path = each["loc"] if each["type"] == "missing" else table.reach(each["loc"])[1]
        by_path.setdefault(path, []).append(each)
    for path, errors in by_path.items():
        if errors[0]["type"] == "missing":
            yield table.error(f"{what} needs {path[0]}: {type_in_words(types[str(path[0])])}")
        else:
            yield _complaint(table.reach(path)[0], path, errors, types)


def _complaint(value: Node, path: KeyPath, errors: Errors, types: Mapping[str, Any]) -> Diagnostic:
    label = ".".join(str(part + 1 if isinstance(part, int) else part) for part in path)
    # An out-of-range number is more informative than "not one of the literals of the union".
    range_errors = [each for each in errors if not _is_of_type(each["type"])]
    if range_errors:
        return value.error(_of_range(range_errors[0], label, value))
    annotation: Any = types[str(path[0])]
    for part in path[1:]:
        annotation = inner_type(annotation, part)
    plain = value.plain()
    near = did_you_mean(plain, choices(annotation)) if isinstance(plain, str) else ""
    message = f"{label} should be {type_in_words(annotation)}, not {shown(plain)}{near}"
    return value.error(message, _unquoted(plain, annotation))


def _is_of_type(error_type: str) -> bool:
    return error_type.endswith("_type") or error_type in ("literal_error", "is_instance_of")


def _of_range(error: Mapping[str, Any], label: str, value: Node) -> str:
    if error["type"] in ("value_error", "assertion_error"):
        said = str(error["ctx"]["error"])
        return said if not label or label in said else f"{label}: {said}"
    found = shown(value.plain())
    if isinstance(given := error["input"], Schedule):
        label, found = f"both ends of {label}", f"{given.start:g} and {given.end:g}"
    said = error["msg"].replace("Input should", f"{label} should").replace(" after validation", "")
    for long, short in _SHORTER.items():
        said = said.replace(long, short)
    if not said.startswith(label):
        said = f"{label}: {said[0].lower()}{said[1:]}"
    return said if ", not " in said else f"{said}, not {found}"


def _unquoted(plain: object, annotation: Any) -> str:
    """A hint for a number or boolean in quotes."""
    if not isinstance(plain, str) or str in members(annotation):
        return ""
    try:
        meant = tomli.loads(f"value = {plain}")["value"]
    except (ValueError, RecursionError):
        return ""
    fits = isinstance(meant, bool | int | float) and {bool, int, float} & {*members(annotation)}
    return f"write it without quotes: {plain}" if fits else ""


def shown(value: object) -> str:
    """A value in TOML syntax, cut to a readable length."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, bool | str):
        text = json.dumps(value, ensure_ascii=False)
    elif isinstance(value, list):
        text = f"[{', '.join(map(shown, value[:_LONGEST]))}]"
    else:
        text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


_Options = TypeVar("_Options")


class Builder:
    """Builds components from tables, and collects all errors."""

    def __init__(self, host: PluginManager, errors: list[Diagnostic]) -> None:
        self.host = host
        self.errors = errors
        self.places: list[tuple[Component, Node]] = []  # all built components, and their tables

    def component(
        self, kind: str, table: Node, engine_keys: Collection[str] = ()
    ) -> Component | None:
        """The component that a table names, or None and errors. `engine_keys` are not its own."""
        if not table.is_table or "use" not in table.table:
            self.errors.append(self._nameless(kind, table))
            return None
        use = table.table["use"]
        if table.use not in self.host.provided(kind):
            self.errors.append(use.error(self._why_not(kind, use)))
            return None
        cls = self.host.provided(kind)[str(table.use)].cls
        what = f"the {kind} {table.use!r}"
        made = self.options(cls, table, what, ("use", *engine_keys))
        if made is not None:
            self.places.append((made, table))
        return made

    def options(
        self, cls: type[_Options], table: Node, what: str, engine_keys: Collection[str] = ()
    ) -> _Options | None:
        """An instance with the options of a table, or None and errors."""
        types, nested = option_types(cls), nested_options(cls)
        for key in [key for key in nested if key in table.table]:
            said = f"{key} belongs in the tables of {nested[key]}, not next to them"
            self.errors.append(table.table[key].error(said))
        children = {key: value for key, value in table.table.items() if key not in nested}
        table = _lifted(table.with_children(children), nested)
        own = {key: value for key, value in table.table.items() if key not in engine_keys}
        unknown = [key for key in own if key not in types]
        for key in unknown:
            self.errors.append(own[key].error(*_unknown(key, what, [*types, *engine_keys])))
        given = {key: self._given(types[key], own[key]) for key in own if key in types}
        unbuilt = [key for key, value in given.items() if value is _UNBUILT]
        try:
            made = cls(**{key: value for key, value in given.items() if value is not _UNBUILT})
        except ValidationError as error:
            # Reported before: the missing option is the misspelt one.
            misspelt = [near for key in unknown for near in get_close_matches(key, types, n=1)]
            misspelt += [found[0] for key in unknown if (found := ours(key))]
            self.errors += validation_errors(error, table, types, what, [*unbuilt, *misspelt])
            return None
        except UsageError as error:  # from a component that validates its options together
            self.errors.append(table.error(str(error)))
            return None
        except (Exception, SystemExit) as error:
            said = (
                f"{what} ({defined_in(cls)}) raised {type(error).__name__} when it was made: "
                f"{error}"
            )
            raise PluginError(said) from error
        return None if unknown or unbuilt else made

    def _given(self, annotation: Any, value: Node) -> object:
        """The plain value; where the type takes a component, tables become components."""
        for member in members(annotation):
            kind = kind_of(member)
            if value.is_table and kind:
                return self.component(kind, value) or _UNBUILT
            if value.is_table and hasattr(member, "__pydantic_fields__"):
                return self.options(member, value, f"a {member.__name__.lower()}") or _UNBUILT
            if kinds_in(member) and get_origin(member) is (list if value.is_list else dict):
                return self._nested(get_args(member)[-1], value)
        return value.plain()

    def _nested(self, annotation: Any, value: Node) -> object:
        """A list or table of components."""
        if value.is_list:
            items = [self._given(annotation, each) for each in value.items]
            return _UNBUILT if _UNBUILT in items else items
        entries = {key: self._given(annotation, each) for key, each in value.table.items()}
        return _UNBUILT if _UNBUILT in entries.values() else entries

    def _nameless(self, kind: str, table: Node) -> Diagnostic:
        names = ", ".join(sorted(self.host.provided(kind))) or "none is installed"
        if table.is_table:
            return table.error(f'a {kind} needs use = "NAME"', f"there are: {names}")
        return table.error(
            f"a {kind} is a table, not {shown(table.plain())}",
            f'write {{use = "NAME"}}; there are: {names}',
        )

    def _why_not(self, kind: str, use: Node) -> str:
        name = use.value
        if isinstance(name, str):
            return self.host.why_missing(kind, name)
        return f"use should be the name of a {kind}, in quotes, not {shown(name)}"


def _lifted(table: Node, inside: Mapping[str, str]) -> Node:
    """The table with options added that the recipe writes into nested tables."""
    children = dict(table.table)
    for key, option in inside.items():
        nested = children.get(option)
        if nested is not None and nested.is_list:
            each = [item.table.get(key) for item in nested.items]
            items = zip(nested.items, each, strict=True)
            children[key] = nested.with_children(
                [
                    Node(None, item.source, item.path) if value is None else value
                    for item, value in items
                ]
            )
            children[option] = nested.with_children(
                [
                    item.with_children({k: v for k, v in item.table.items() if k != key})
                    if item.is_table
                    else item
                    for item in nested.items
                ]
            )
    return table.with_children(children)


def _unknown(key: str, what: str, known: Collection[str]) -> tuple[str, str]:
    """Message and hint for an unknown key."""
    near = did_you_mean(key, known)
    if (found := ours(key)) and found[0] in known and (key in WORDS or not near):
        return f"{what} has no option {key!r}: here it is {found[0]!r}", found[1]
    own = ", ".join(name for name in known if name != "use")
    hint = f"it has: {own}" if own else "it has no options"
    return f"{what} has no option {key!r}{near}", "" if near else hint
