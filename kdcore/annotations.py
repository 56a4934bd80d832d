"""An option's type: what it takes, in words for a fault and in short for a listing."""

from __future__ import annotations

import json
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from kdcore.api import KINDS

_PLAIN = {
    bool: ("true or false", "bool"),
    int: ("a whole number", "int"),
    float: ("a number", "float"),
    str: ("a text", "str"),
    list: ("a list", "list"),
    dict: ("a table", "dict"),
}


def members(annotation: Any) -> list[Any]:
    """The alternatives of a union, or the one type; without None, and without constraints."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return members(arguments[0])
    if origin in (Union, UnionType):
        return [member for each in arguments for member in members(each)]
    return [] if annotation in (None, NoneType) else [annotation]


def kind_of(annotation: Any) -> str | None:
    """The kind of component that a single type stands for."""
    return next((kind for kind, base in KINDS.items() if annotation is base), None)


def kinds_in(annotation: Any) -> list[str]:
    """The kinds that a type takes anywhere: itself, in a list, or in a table."""
    kinds = []
    for member in members(annotation):
        kind = kind_of(member)
        inner = [each for argument in get_args(member) for each in kinds_in(argument)]
        kinds += [kind] if kind else inner if get_origin(member) in (list, dict) else []
    return kinds


def inner_type(annotation: Any, part: str | int) -> Any:
    """The type of a list's items, or of a table's values."""
    wanted = list if isinstance(part, int) else dict
    for member in members(annotation):
        if get_origin(member) is wanted:
            return get_args(member)[-1]
    return Any


def in_words(annotation: Any) -> str:
    """What a value should be: `a whole number or "auto"`."""
    return " or ".join(_words(member) for member in members(annotation)) or "something else"


def type_text(annotation: Any) -> str:
    """The type in short: `list[teacher] | "auto"`."""
    return " | ".join(_short(member) for member in members(annotation))


def choices(annotation: Any) -> list[str]:
    """The texts that a type names."""
    literals = [get_args(each) for each in members(annotation) if get_origin(each) is Literal]
    return [value for values in literals for value in values if isinstance(value, str)]


def _words(member: Any) -> str:
    kind = kind_of(member)
    if kind:
        return f'a {kind} table, {{use = "..."}}'
    if get_origin(member) is Literal:
        *most, last = map(json.dumps, get_args(member))
        return f"{', '.join(most)} or {last}" if most else last
    if get_origin(member) is list:
        return f"a list, each item {in_words(get_args(member)[0])}"
    return _PLAIN[get_origin(member) or member][0] if _is_plain(member) else "a table"


def _short(member: Any) -> str:
    if get_origin(member) is Literal:
        return " | ".join(map(json.dumps, get_args(member)))
    arguments = ", ".join(type_text(argument) for argument in get_args(member))
    name = kind_of(member) or _PLAIN[get_origin(member) or member][1]
    return f"{name}[{arguments}]" if arguments else name


def _is_plain(member: Any) -> bool:
    return (get_origin(member) or member) in _PLAIN
