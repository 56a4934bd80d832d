"""Options of components: their types, descriptions and fingerprints."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeGuard, TypeVar, Union, get_args, get_origin

from kdcore.api.schedule import Schedule
from kdcore.guard import Named, call_checked
from kdcore.models.locations import is_path

SPELT = (
    "bool, int, float, str, Literal, list, dict, Scheduled, a component kind, or a union of these"
)
_PLAIN_TYPES = (bool, int, float, str, list, dict, Schedule, NoneType)


def is_option_type(annotation: Any) -> bool:
    """Whether a recipe can hold a value of this type. None is allowed as the type of a default."""
    if annotation in _PLAIN_TYPES or kind_of(annotation):
        return True
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return True
    if origin is Annotated:
        return is_option_type(arguments[0])
    if origin is dict:
        return arguments[0] is str and is_option_type(arguments[1])
    return origin in (list, Union, UnionType) and all(map(is_option_type, arguments))


_PLAIN = {
    bool: ("true or false", "bool"),
    int: ("a whole number", "int"),
    float: ("a number", "float"),
    str: ("a text", "str"),
    list: ("a list", "list"),
    dict: ("a table", "dict"),
    Schedule: ("{start, end, until}", "schedule"),
}


def members(annotation: Any) -> list[Any]:
    """The members of a union, or the type itself; without None and constraints."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return members(arguments[0])
    if origin in (Union, UnionType):
        return [member for each in arguments for member in members(each)]
    return [] if annotation in (None, NoneType) else [annotation]


def kind_of(annotation: Any) -> str | None:
    """The kind of component that a type denotes; None for other types."""
    # Only the class's own attribute counts: an option takes a kind, not one component of it.
    return vars(annotation).get("component_kind") if isinstance(annotation, type) else None


def kinds_in(annotation: Any) -> list[str]:
    """The kinds that a type accepts: itself, in a list, or in a table."""
    kinds = []
    for member in members(annotation):
        kind = kind_of(member)
        inner = [each for argument in get_args(member) for each in kinds_in(argument)]
        kinds += [kind] if kind else inner if get_origin(member) in (list, dict) else []
    return kinds


def inner_type(annotation: Any, part: str | int) -> Any:
    """The type of the items of a list, or of the values of a table."""
    wanted = list if isinstance(part, int) else dict
    for member in members(annotation):
        if get_origin(member) is wanted:
            return get_args(member)[-1]
    return Any


def type_in_words(annotation: Any) -> str:
    """The type in words, for errors: `a whole number or "auto"`."""
    return " or ".join(_words(member) for member in members(annotation)) or "something else"


def type_text(annotation: Any) -> str:
    """The type in short: `list[teacher] | "auto"`."""
    return " | ".join(_short(member) for member in members(annotation))


def choices(annotation: Any) -> list[str]:
    """The string literals of a type."""
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
        return f"a list, each item {type_in_words(get_args(member)[0])}"
    return _PLAIN[get_origin(member) or member][0] if _is_plain(member) else "a table"


def _short(member: Any) -> str:
    if get_origin(member) is Literal:
        return " | ".join(map(json.dumps, get_args(member)))
    arguments = ", ".join(type_text(argument) for argument in get_args(member))
    name = kind_of(member) or _PLAIN[get_origin(member) or member][1]
    return f"{name}[{arguments}]" if arguments else name


def _is_plain(member: Any) -> bool:
    return (get_origin(member) or member) in _PLAIN


@dataclass(frozen=True)
class Option:
    """An option of a component, for listings."""

    name: str
    type: str
    default: object  # None where it is required
    required: bool
    doc: str
    bounds: str = ""  # such as "> 0, <= 1"


def option_fields(cls: type) -> dict[str, tuple[str, Any]]:
    """Each option of a component or engine table -> its attribute and pydantic field."""
    fields: Mapping[str, Any] = cls.__pydantic_fields__  # type: ignore[attr-defined]
    return {field.alias or name: (name, field) for name, field in fields.items()}


def nested_options(cls: type) -> dict[str, str]:
    """Options that a recipe writes into the nested tables of another option -> that option.

    `where: Annotated[list[...], Field(json_schema_extra={"beside": "members"})]` is a key of each
    table in `members`; the list holds None for tables without it.
    """
    extras = {name: field.json_schema_extra for name, (_, field) in option_fields(cls).items()}
    return {
        name: str(extra["beside"])
        for name, extra in extras.items()
        if isinstance(extra, dict) and "beside" in extra
    }


def option_types(cls: type) -> dict[str, Any]:
    """The type of each option."""
    return {option: field.annotation for option, (_, field) in option_fields(cls).items()}


def option_values(made: object) -> dict[str, object]:
    """The value of each option, defaults included; none of a class that declares no options."""
    if not hasattr(type(made), "__pydantic_fields__"):
        return {}
    return {
        option: getattr(made, attribute)
        for option, (attribute, _) in option_fields(type(made)).items()
    }


def options_of(cls: type[Named]) -> list[Option]:
    """The options of a component, in the order of definition."""
    options = []
    for name, (_, field) in option_fields(cls).items():
        required = field.is_required()
        default = None if required else field.get_default(call_default_factory=True)
        doc, bounds = field.description or "", ", ".join(_bounds(field))
        options.append(Option(name, type_text(field.annotation), default, required, doc, bounds))
    return options


_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def _bounds(field: Any) -> Iterator[str]:
    """The bounds of a field's values, including those on one member of a union."""
    for bound in (*field.metadata, *_nested_bounds(field.annotation)):
        yield from (
            f"{sign} {getattr(bound, name):g}"
            for name, sign in _SIGNS.items()
            if getattr(bound, name, None) is not None
        )


def _nested_bounds(annotation: Any) -> Iterator[Any]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from (each for bound in arguments[1:] for each in getattr(bound, "metadata", [bound]))
        yield from _nested_bounds(arguments[0])
    elif origin in (Union, UnionType):
        yield from (each for member in arguments for each in _nested_bounds(member))


_Component = TypeVar("_Component", bound=Named)


def iter_components(component: _Component) -> Iterator[_Component]:
    """A component and its nested components, depth first."""
    yield from (each for _, each in placed(component, ""))


def schedules_in(components: Iterable[object]) -> list[Schedule]:
    """The distinct schedules among the options of components and of their nested components."""
    return list(dict.fromkeys(each for one in components for each in _schedules_in(one)))


def _schedules_in(value: object) -> Iterator[Schedule]:
    inner: Iterable[object] = ()
    if isinstance(value, Schedule):
        yield value
    elif _is_component(value):
        inner = option_values(value).values()
    elif isinstance(value, list | dict):
        inner = value.values() if isinstance(value, dict) else value
    for each in inner:
        yield from _schedules_in(each)


def placed(component: _Component, place: str) -> Iterator[tuple[str, _Component]]:
    """A component and its nested components, with their dotted paths."""
    yield place, component
    for option, value in option_values(component).items():
        for path, nested in _placed_in(value, f"{place}.{option}"):
            yield from placed(nested, path)


def _placed_in(value: object, place: str) -> Iterator[tuple[str, Any]]:
    if _is_component(value):
        yield place, value
    elif isinstance(value, list | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in items:
            yield from _placed_in(each, f"{place}.{key}")


def _is_component(value: object) -> TypeGuard[Named]:
    return hasattr(type(value), "component_kind")


def of_options(component: Named, without: Iterable[str] = ()) -> str:
    """Name and options, defaults included; nested components by their own fingerprints.

    Leaves out the options in `elsewhere`.
    """
    names = {alias: name for alias, (name, _) in option_fields(type(component)).items()}
    elsewhere = [names.get(each, each) for each in getattr(component, "elsewhere", ())]
    return _call(component.name, component, _asked, [*without, *elsewhere])


def _asked(nested: Named) -> str:
    found: str = call_checked(nested, "fingerprint", of=str)
    return found


def as_call(component: Named) -> str:
    """The component as a call in Python syntax: `skew_kl(temperature=2.0, skew=0.1)`."""
    return _call(component.name.replace("-", "_"), component, as_call)


def describe(component: Named) -> str:
    """The component with its non-default options, to name it in a message."""
    plain = {f.name for f in fields(component) if getattr(component, f.name) == f.default}  # type: ignore[arg-type]
    return _call(component.name, component, describe, plain)


def _call(
    name: str, component: Named, show: Callable[[Named], str], without: Iterable[str] = ()
) -> str:
    types: Mapping[str, Any] = type(component).__pydantic_fields__  # type: ignore[attr-defined]
    options = [f.name for f in fields(component) if f.name not in without]  # type: ignore[arg-type]
    given = ", ".join(
        f"{types[key].alias or key}={_shown(getattr(component, key), show)}" for key in options
    )
    return f"{name}({given})"


def _shown(value: object, show: Callable[[Named], str]) -> str:
    if _is_component(value):
        return show(value)
    if isinstance(value, Schedule):
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(_shown(each, show) for each in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_shown(value[key], show)}' for key in sorted(value))}}}"
    return repr(value)


_TABLES = {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow"}
_FILES = {".txt", ".toml", *_TABLES, ".gz", ".bz2", ".xz", ".zst"}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def names_on_hub(component: Named) -> list[str]:
    """The option values of a component and its nested ones that can only be hub names."""
    found = [
        name for each in iter_components(component) for name in _texts(option_values(each).values())
    ]
    return [name for name in dict.fromkeys(found) if is_on_hub(name)]


def reads_columns(component: Named, there: Sequence[str] = ()) -> list[Mapping[str, Any]]:
    """The columns that a component and its nested ones require; see `Component.reads_columns`.

    Includes those `optional_columns` that documents have, which `there` lists.
    """
    found = list[Mapping[str, Any]]()
    for each in iter_components(component):
        found += call_checked(each, "reads_columns", of=(list, tuple))
        optional = call_checked(each, "optional_columns", of=(list, tuple))
        found += [{name: []} for name in optional if name in there]
    return found


def ask_for_columns(components: Sequence[Named]) -> None:
    """Set `asked_columns` of data components to the optional columns of all components."""
    each = [call_checked(one, "optional_columns", of=Sequence) for one in components]
    asked = frozenset(name for names in each for name in names)
    for one in components:
        if asked and one.component_kind == "data":
            one.asked_columns = asked  # type: ignore[attr-defined]


def is_on_hub(name: str) -> bool:
    """Whether a text can only be a name on the hub, not a path."""
    if is_path(name) or os.path.exists(name) or Path(name).suffix.lower() in _FILES:
        return False
    return _NAME.fullmatch(name) is not None


def _texts(values: Iterable[object]) -> Iterable[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from _texts(value)
