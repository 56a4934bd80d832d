"""A component as a recipe table, for copying."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import tomli_w

from kdcore.api.component import Component
from kdcore.api.options import Option, describe, options_of

_TABLES: Mapping[str, str] = {
    "loss": "[[loss]]",
    "patch": "[[student.patch]]",
    "eval": "[[eval]]",
    "logger": "[[log]]",
}
"""Tables of kinds with their own syntax; others use `[KIND]`."""


def table_to_paste(kind: str, cls: type[Component]) -> str:
    """The table with every option at its default; required ones as comments."""
    head = [_TABLES.get(kind, f"[{kind}]"), f'use = "{cls.name}"']
    return "\n".join([*head, *_lines(options_of(cls))])


def _lines(options: list[Option]) -> Iterator[str]:
    for option in options:
        said = option.type + (f", {option.bounds}" if option.bounds else "")
        if option.required:
            yield f"# {option.name} =   required: {said}"
        elif option.default is None:
            yield f"# {option.name} =   {said}"
        elif isinstance(option.default, Component):
            yield f'{option.name} = {{use = "{option.default.name}"}}'
        elif any(isinstance(each, Component) for each in _inner(option.default)):
            yield f"# {option.name} =   {describe_all(option.default)}"
        else:
            yield tomli_w.dumps({option.name: option.default}, multiline_strings=False).strip()


def _inner(value: object) -> list[object]:
    return [*value] if isinstance(value, list) else []


def describe_all(value: object) -> str:
    """A default that contains components, in words."""
    return ", ".join(describe(each) for each in _inner(value) if isinstance(each, Component))
