"""pydantic's errors as faults of a recipe: located, and in the words of the recipe language."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import tomli
from pydantic import ValidationError

from kdcore.annotations import choices, in_words, inner_type, members
from kdcore.contract import suggestion
from kdcore.errors import Fault
from kdcore.locate import KeyPath
from kdcore.written import Written

Errors = Sequence[Mapping[str, Any]]

_LONGEST = 60  # characters of a value that a message shows
_SHORTER = {"greater than or equal to": "at least", "less than or equal to": "at most"}


def complaints(
    error: ValidationError,
    table: Written,
    types: Mapping[str, Any],
    what: str,
    without: Collection[str] = (),
) -> Iterator[Fault]:
    """A fault for each value that is wrong; `without` are options that were told of before."""
    by_path: dict[KeyPath, list[Mapping[str, Any]]] = {}
    for each in error.errors(include_url=False):
        if each["loc"] and each["loc"][0] in without:
            continue
        # Behind the path, pydantic names the alternatives of a union.
        path = each["loc"] if each["type"] == "missing" else table.reach(each["loc"])[1]
        by_path.setdefault(path, []).append(each)
    for path, errors in by_path.items():
        if errors[0]["type"] == "missing":
            yield table.fault(f"{what} needs {path[0]}: {in_words(types[str(path[0])])}")
        else:
            yield _complaint(table.reach(path)[0], path, errors, types)


def _complaint(value: Written, path: KeyPath, errors: Errors, types: Mapping[str, Any]) -> Fault:
    label = ".".join(str(part + 1 if isinstance(part, int) else part) for part in path)
    # A number that is out of range says more than "not one of the texts of the union" does.
    range_errors = [each for each in errors if not _is_of_type(each["type"])]
    if range_errors:
        return value.fault(_of_range(range_errors[0], label, value))
    annotation: Any = types[str(path[0])]
    for part in path[1:]:
        annotation = inner_type(annotation, part)
    plain = value.plain()
    near = suggestion(plain, choices(annotation)) if isinstance(plain, str) else ""
    message = f"{label} should be {in_words(annotation)}, not {shown(plain)}{near}"
    return value.fault(message, _unquoted(plain, annotation))


def _is_of_type(error_type: str) -> bool:
    return error_type.endswith("_type") or error_type in ("literal_error", "is_instance_of")


def _of_range(error: Mapping[str, Any], label: str, value: Written) -> str:
    if error["type"] in ("value_error", "assertion_error"):
        said = str(error["ctx"]["error"])
        return said if not label or label in said else f"{label}: {said}"
    said = error["msg"].replace("Input should", f"{label} should").replace(" after validation", "")
    for long, short in _SHORTER.items():
        said = said.replace(long, short)
    if not said.startswith(label):
        said = f"{label}: {said[0].lower()}{said[1:]}"
    return said if ", not " in said else f"{said}, not {shown(value.plain())}"


def _unquoted(plain: object, annotation: Any) -> str:
    """The way out where a number or truth value stands in quotes."""
    if not isinstance(plain, str) or str in members(annotation):
        return ""
    try:
        meant = tomli.loads(f"value = {plain}")["value"]
    except (ValueError, RecursionError):
        return ""
    fits = isinstance(meant, bool | int | float) and {bool, int, float} & {*members(annotation)}
    return f"write it without quotes: {plain}" if fits else ""


def shown(value: object) -> str:
    """A value as TOML spells it, cut to a readable length."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, bool | str):
        text = json.dumps(value, ensure_ascii=False)
    elif isinstance(value, list):
        text = f"[{', '.join(map(shown, value))}]"
    else:
        text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
