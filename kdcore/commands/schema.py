"""`kdcore schema`: JSON Schema of the recipe language with installed plugins, for editors."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from kdcore.api.kinds import KINDS
from kdcore.api.options import (
    inner_type,
    kind_of,
    kinds_in,
    members,
    nested_options,
    option_fields,
    option_types,
)
from kdcore.api.schedule import Schedule
from kdcore.api.student import StudentOptions
from kdcore.api.train_options import (
    RIVALS,
    ResourceOptions,
    Rivals,
    RolloutOptions,
    SelectionOptions,
    TermOptions,
    TrainOptions,
)
from kdcore.cli.examples import examples
from kdcore.cli.main import plugin_manager
from kdcore.commands.output import Plugins, print_json
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.merge import NONE
from kdcore.recipe.node import IN_STAGE, KINDS_OF_TABLES, LISTS, TABLES

Schema = dict[str, Any]

_ENGINE = {"loss": TermOptions, "selection": SelectionOptions, "rollout": RolloutOptions}
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_NEEDED = ("student", "data", "loss", "train")
_PLAIN: Mapping[Any, Schema] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    list: {"type": "array"},
    dict: {"type": "object"},
}
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


@examples("kdcore schema", "kdcore schema -p ./mine.py")
def schema(plugins: Plugins = None) -> None:
    """Print the JSON Schema of recipes with the installed plugins, for editors."""
    print_json(schema_of(plugin_manager(plugins)))


def schema_of(host: PluginManager) -> Schema:
    """The schema. Recipes with `extends` or stages may omit inherited keys."""
    parts = {f"{kind}.part": _of_kind(host, kind, whole=False) for kind in KINDS}
    wholes = {kind: _of_kind(host, kind, whole=True) for kind in KINDS}
    of_stage = _tables(whole=False)
    inherits = {"anyOf": [{"required": ["extends"]}, {"required": ["stage"]}]}
    return {
        "$schema": _DIALECT,
        "title": "A recipe of kdcore",
        "type": "object",
        "properties": {**_TOP, **of_stage},
        "additionalProperties": False,
        "if": inherits,
        "else": {"required": [*_NEEDED], "properties": _tables(whole=True)},
        "$defs": {
            **wholes,
            **parts,
            "stage": {
                "type": "object",
                "properties": {**of_stage, "use": {"const": NONE}},
                "additionalProperties": False,
            },
        },
    }


_SEED = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
_TEXTS = {"type": "array", "items": {"type": "string"}}
_TOP: Mapping[str, Schema] = {
    "name": {"type": "string", "description": "begins the names of run folders"},
    "extends": {"type": "string", "description": "the recipe that this one changes"},
    "requires": {**_TEXTS, "description": "distributions, as pip writes them"},
    "sweep": {
        "description": "what `kdcore sweep` varies: lists of values by key, and controls",
        "anyOf": [{"type": "object"}, {"type": "array", "items": {"type": "object"}}],
    },
    "stage": {
        "description": "runs that build on each other; each has tables of its own",
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"$ref": "#/$defs/stage"},
    },
}


def _tables(*, whole: bool) -> Schema:
    """The tables of a stage, or of a recipe without any."""
    found: Schema = {
        "seed": {**_SEED, "description": "determines all random choices of a run"},
        "trust_remote_code": {**_TEXTS, "description": "models whose own code may run"},
        "student": _of_options(StudentOptions, whole=whole, rivals=RIVALS["student"]),
        "train": _of_options(TrainOptions, whole=whole, rivals=RIVALS["train"]),
        "resources": _of_options(ResourceOptions, whole=whole),
    }
    for key in (*TABLES, *LISTS):
        if key in KINDS_OF_TABLES:
            # Lists, and therefore their items, replace what they inherit.
            kind = KINDS_OF_TABLES[key]
            one = _reference(kind, whole=whole or key in LISTS)
            found[key] = {"type": "array", "items": one} if key in LISTS else one
    return {key: found[key] for key in IN_STAGE}


def _reference(kind: str, *, whole: bool) -> Schema:
    return {"$ref": f"#/$defs/{kind}" + ("" if whole else ".part")}


def _of_kind(host: PluginManager, kind: str, *, whole: bool) -> Schema:
    """Any component of a kind: its name in `use`, and its options."""
    none: Schema = {
        "properties": {"use": {"const": NONE}},
        "required": ["use"],
        "description": "removes what is inherited",
    }
    engine = _ENGINE.get(kind)
    own = _properties(engine, whole=True) if engine is not None else {}
    own |= _nested(host, kind)
    found = [none]
    for name, provided in sorted(host.provided(kind).items()):
        one = _of_options(provided.cls, whole=whole, more={"use": {"const": name}, **own})
        if whole:
            one["required"] = ["use", *one.get("required", ())]
        found.append({"description": inspect.getdoc(provided.cls) or "", **one})
    return {"type": "object", "anyOf": found}


def _nested(host: PluginManager, kind: str) -> Schema:
    """Keys of nested tables that the enclosing component defines."""
    found: Schema = {}
    for other in KINDS:
        for provided in host.provided(other).values():
            types = option_types(provided.cls)
            for key, option in nested_options(provided.cls).items():
                if kind in kinds_in(types[option]):
                    found[key] = _of_type(inner_type(types[key], 0), whole=True)
    return found


def _of_options(
    cls: type,
    *,
    whole: bool,
    rivals: Sequence[Rivals] = (),
    more: Mapping[str, Schema] | None = None,
) -> Schema:
    """A table of options; of each group of `rivals` one is given."""
    found: Schema = {
        "type": "object",
        "properties": {**(more or {}), **_properties(cls, whole=whole)},
        "additionalProperties": False,
    }
    fields = option_fields(cls).items()
    needed = [name for name, (_, field) in fields if field.is_required()]
    if whole and needed:
        found["required"] = needed
    if whole and rivals:
        found["allOf"] = [_one_of(each) for each in rivals]
    return found


def _one_of(rivals: Rivals) -> Schema:
    """Exactly one of them, or at most one."""
    given: list[Schema] = [{"required": [each]} for each in rivals.names]
    none: Schema = {"not": {"anyOf": given}}
    return {"oneOf": given if rivals.needed else [*given, none]}


def _properties(cls: type, *, whole: bool) -> Schema:
    inside = nested_options(cls)
    return {
        name: _of_field(field, field.description or _sentences_on(name, cls), whole=whole)
        for name, (_, field) in option_fields(cls).items()
        if name not in inside
    }


def _sentences_on(option: str, cls: type) -> str:
    """The sentences that name an option, in the docstring of the class or of a base class."""
    for each in cls.__mro__:
        sentences = re.split(r"(?<=[.;])\s+", inspect.cleandoc(each.__doc__ or ""))
        found = [" ".join(some.split()) for some in sentences if f"`{option}`" in some]
        if found:
            return " ".join(found)
    return ""


def _of_field(field: FieldInfo, description: str, *, whole: bool) -> Schema:
    found = _of_type(field.annotation, whole=whole)
    _bound(found, field.metadata)
    if description:
        found["description"] = description
    if not field.is_required():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, bool | int | float | str | list | dict):
            found["default"] = default
    return found


def _of_type(annotation: Any, *, whole: bool) -> Schema:
    """A type, with bounds at any depth."""
    if get_origin(annotation) is Annotated:
        inner, *bounds = get_args(annotation)
        found = _of_type(inner, whole=whole)
        _bound(found, bounds)
        return found
    origin = get_origin(annotation)
    if origin in (None, list, dict, Literal):
        return _of_one(annotation, whole=whole)
    # A union; None stands for an omitted key.
    parts = [_of_type(each, whole=whole) for each in get_args(annotation) if members(each)]
    return parts[0] if len(parts) == 1 else {"anyOf": parts}


def _of_one(member: Any, *, whole: bool) -> Schema:
    kind, origin = kind_of(member), get_origin(member)
    if kind is not None:
        return _reference(kind, whole=whole)
    if member is Schedule:
        return _of_options(Schedule, whole=True)
    if origin is Literal:
        return {"enum": [*get_args(member)]}
    if origin is list:
        return {"type": "array", "items": _of_type(get_args(member)[0], whole=True)}
    if origin is dict:
        return {
            "type": "object",
            "additionalProperties": _of_type(get_args(member)[1], whole=whole),
        }
    return dict(_PLAIN.get(member, {}))


def _bound(found: Schema, bounds: Iterable[Any]) -> None:
    """Add the limits that both pydantic and JSON Schema support."""
    for bound in bounds:
        if isinstance(bound, FieldInfo):
            _bound(found, bound.metadata)
        for name, word in _BOUNDS.items():
            if (limit := getattr(bound, name, None)) is not None:
                found[word] = limit
        many = "Items" if found.get("type") == "array" else "Length"
        if isinstance(bound, annotated_types.MinLen):
            found[f"min{many}"] = bound.min_length
        if isinstance(bound, annotated_types.MaxLen):
            found[f"max{many}"] = bound.max_length
