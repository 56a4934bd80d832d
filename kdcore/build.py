"""Components out of recipe tables, nested by the types of their options."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

from pydantic import ValidationError

from kdcore.annotations import kind_of, kinds_in, members, type_text
from kdcore.api import Component
from kdcore.blame import place_of
from kdcore.complaints import complaints, shown
from kdcore.contract import suggestion
from kdcore.errors import Fault, PluginError, RecipeError, UsageError
from kdcore.written import Source, Written

if TYPE_CHECKING:
    from kdcore.plugins import Host

_Options = TypeVar("_Options")
_UNBUILT = object()  # stands for a nested component whose faults were told


@dataclass(frozen=True)
class Option:
    """An option of a component, for listings."""

    name: str
    type: str
    default: object  # None where it is required
    required: bool
    doc: str


def option_fields(cls: type) -> dict[str, tuple[str, Any]]:
    """Each option of a component, or of the engine's own: its attribute, and pydantic's field."""
    fields: Mapping[str, Any] = cls.__pydantic_fields__  # type: ignore[attr-defined]
    return {field.alias or name: (name, field) for name, field in fields.items()}


def option_types(cls: type) -> dict[str, Any]:
    """The type of each option."""
    return {option: field.annotation for option, (_, field) in option_fields(cls).items()}


def option_values(made: object) -> dict[str, object]:
    """The value of each option, defaults included."""
    return {
        option: getattr(made, attribute)
        for option, (attribute, _) in option_fields(type(made)).items()
    }


def options_of(cls: type[Component]) -> list[Option]:
    """The options of a component, in the order in which they are written."""
    options = []
    for name, (_, field) in option_fields(cls).items():
        required = field.is_required()
        default = None if required else field.get_default(call_default_factory=True)
        doc = field.description or ""
        options.append(Option(name, type_text(field.annotation), default, required, doc))
    return options


def walk(component: Component) -> Iterator[Component]:
    """A component, and all that are nested in it."""
    yield component
    for value in option_values(component).values():
        for nested in _components_in(value):
            yield from walk(nested)


def _components_in(value: object) -> Iterator[Component]:
    if isinstance(value, Component):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _components_in(each)


def build_named(kind: str, name: str, host: Host) -> Component:
    """A component with its defaults, as an option of the command line names it."""
    faults: list[Fault] = []
    builder = Builder(host, faults)
    made = builder.component(kind, Written.of({"use": name}, Source(f"{kind} {name}")))
    if made is None:
        raise RecipeError(faults)
    return made


class Builder:
    """Builds what tables describe, and gathers every fault."""

    def __init__(self, host: Host, faults: list[Fault]) -> None:
        self.host = host
        self.faults = faults
        self.places: list[tuple[Component, Written]] = []  # everything built, and from where

    def component(
        self, kind: str, table: Written, engine_keys: Collection[str] = ()
    ) -> Component | None:
        """The component that a table names, or None and faults. `engine_keys` are not its own."""
        if not table.is_table or "use" not in table.table:
            self.faults.append(self._nameless(kind, table))
            return None
        use = table.table["use"]
        if table.use not in self.host.provided(kind):
            self.faults.append(use.fault(self._why_not(kind, use)))
            return None
        cls = self.host.provided(kind)[str(table.use)].cls
        what = f"the {kind} {table.use!r}"
        made = self.options(cls, table, what, ("use", *engine_keys))
        if made is not None:
            self.places.append((made, table))
        return made

    def options(
        self, cls: type[_Options], table: Written, what: str, engine_keys: Collection[str] = ()
    ) -> _Options | None:
        """An instance with the options of a table, or None and faults."""
        types = option_types(cls)
        own = {key: value for key, value in table.table.items() if key not in engine_keys}
        unknown = [key for key in own if key not in types]
        for key in unknown:
            self.faults.append(own[key].fault(*_unknown(key, what, [*types, *engine_keys])))
        given = {key: self._given(types[key], own[key]) for key in own if key in types}
        unbuilt = [key for key, value in given.items() if value is _UNBUILT]
        try:
            made = cls(**{key: value for key, value in given.items() if value is not _UNBUILT})
        except ValidationError as error:
            # Told of already: the one that is missing is the one that was spelt wrongly.
            misspelt = [near for key in unknown for near in get_close_matches(key, types, n=1)]
            self.faults += complaints(error, table, types, what, [*unbuilt, *misspelt])
            return None
        except UsageError as error:  # from a component that checks its options together
            self.faults.append(table.fault(str(error)))
            return None
        except (Exception, SystemExit) as error:
            said = (
                f"{what} ({place_of(cls)}) raised {type(error).__name__} when it was made: {error}"
            )
            raise PluginError(said) from error
        return None if unknown or unbuilt else made

    def _given(self, annotation: Any, value: Written) -> object:
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

    def _nested(self, annotation: Any, value: Written) -> object:
        """A list or table of components."""
        if value.is_list:
            items = [self._given(annotation, each) for each in value.items]
            return _UNBUILT if _UNBUILT in items else items
        entries = {key: self._given(annotation, each) for key, each in value.table.items()}
        return _UNBUILT if _UNBUILT in entries.values() else entries

    def _nameless(self, kind: str, table: Written) -> Fault:
        names = ", ".join(sorted(self.host.provided(kind))) or "none is installed"
        if table.is_table:
            return table.fault(f'a {kind} needs use = "NAME"', f"there are: {names}")
        return table.fault(
            f"a {kind} is a table, not {shown(table.plain())}",
            f'write {{use = "NAME"}}; there are: {names}',
        )

    def _why_not(self, kind: str, use: Written) -> str:
        name = use.value
        if isinstance(name, str):
            return self.host.why_missing(kind, name)
        return f"use should be the name of a {kind}, in quotes, not {shown(name)}"


def _unknown(key: str, what: str, known: Collection[str]) -> tuple[str, str]:
    """Message and hint for a key that nobody knows."""
    near = suggestion(key, known)
    own = ", ".join(name for name in known if name != "use")
    hint = f"it has: {own}" if own else "it has no options"
    return f"{what} has no option {key!r}{near}", "" if near else hint
