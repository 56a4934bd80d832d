"""Validation of plugins and components; registers nothing."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import FunctionType, ModuleType
from typing import Any, ForwardRef, cast

import pluggy
from pydantic.dataclasses import rebuild_dataclass

from kdcore.api import hookspecs
from kdcore.api.component import Component
from kdcore.api.kinds import KINDS
from kdcore.api.options import SPELT, is_option_type
from kdcore.errors import did_you_mean

_PLURALS = {"data": "data", "loss": "losses", "patch": "patches"}

PROVIDERS: Mapping[str, str] = {
    f"kdcore_{_PLURALS.get(kind, kind + 's')}": kind for kind in KINDS
}  # hook -> kind

_ARGUMENTS = {
    name: tuple(inspect.signature(spec).parameters)
    for name, spec in vars(hookspecs).items()
    if name.startswith("kdcore_")
}

EVENTS = frozenset(_ARGUMENTS) - frozenset(PROVIDERS)
_TAKEN = {  # by the recipe language
    "loss": {"use", "weight", "on"},
    "selection": {"use", "scope"},
    "rollout": {"use", "share", "every", "prompt_tokens", "write_batch"},
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def hook_names(plugin: object) -> tuple[str, ...]:
    """The hooks that a module, class or instance implements, known or not."""
    return tuple(name for name, _ in _implementations(plugin))


def hook_errors(plugin: object, allowed: Iterable[str]) -> Iterator[str]:
    """Errors in the hooks of a plugin or component class."""
    allowed = frozenset(allowed)
    what = "an event hook" if allowed == EVENTS else "a hook"
    for name, implementation in _implementations(plugin):
        if name not in allowed:
            if not implementation.optionalhook:
                yield f"{_call(plugin, name)} is not {what}{did_you_mean(name, allowed)}"
        elif implementation.wrapper or implementation.hookwrapper:
            yield f"{_call(plugin, name)}: kdcore has no hook wrappers"
        else:
            for argument in sorted({*implementation.argnames} - {*_ARGUMENTS[name]}):
                near = did_you_mean(argument, _ARGUMENTS[name])
                yield f"{_call(plugin, name)} has no argument {argument!r}{near}"


def forgotten_hooks(plugin: object) -> Iterator[str]:
    """A note on every function that has a hook's name but lacks `@hookimpl`."""
    named = [name for name in dir(plugin) if name.startswith("kdcore_")]
    own = [name for name in named if _is_own(inspect.getattr_static(plugin, name, None), plugin)]
    marked = hook_names(plugin) if own else ()
    allowed = EVENTS if inspect.isclass(plugin) else frozenset(_ARGUMENTS)
    for name in own:
        if name not in marked:
            near = "" if name in allowed else f" and is not a hook{did_you_mean(name, allowed)}"
            yield f"{_call(plugin, name)} lacks @hookimpl{near or ' and is never called'}"


def component_errors(kind: str, component: object) -> Iterator[str]:
    """Errors in a component class returned by the hook of `kind`."""
    base = KINDS[kind]
    if not inspect.isclass(component) or not issubclass(component, base) or component is base:
        yield f"{component!r} is not a class of the kind {base.__name__}"
        return
    name = getattr(component, "name", None)
    if not isinstance(name, str):
        yield f'{component.__name__} has no name: write name = "..." in the class, without a type'
    elif not _NAME.fullmatch(name) or name == "none":
        yield f"{component.__name__} cannot be named {name!r}: use letters, digits, - and _"
    if "__pydantic_fields__" not in vars(component):
        yield f"{component.__name__} lacks @component"
    else:
        yield from _option_errors(kind, component)
        options = {field.alias or each for each, field in _fields(component).items()}
        for each in sorted(component.elsewhere - options):
            yield f"{component.__name__}.elsewhere names {each!r}, which is not one of its options"
    yield from hook_errors(component, EVENTS)


def _fields(component: type[Component]) -> Mapping[str, Any]:
    """The pydantic fields of a component: its options, by name."""
    made = cast(Any, component)  # `component` adds attributes that the type checker cannot see
    rebuild_dataclass(made, raise_errors=False)  # a type may be defined after the class
    fields: Mapping[str, Any] = made.__pydantic_fields__
    return fields


_OLDER = {("data", "documents")}  # options of plugins for earlier versions


def _option_errors(kind: str, component: type[Component]) -> Iterator[str]:
    shared = getattr(KINDS[kind], "__pydantic_fields__", {})
    for name, field in _fields(component).items():
        option = f"the option {name!r} of {component.__name__}"
        if name == "name":
            yield f'{option}: write name = "..." without a type'
        elif hasattr(KINDS[kind], name) and name not in shared and (kind, name) not in _OLDER:
            yield f"{option} hides {KINDS[kind].__name__}.{name}: use another name and an alias"
        elif (field.alias or name) in _TAKEN.get(kind, {"use"}):
            yield f"{option} is called {field.alias or name!r}, which recipes use themselves"
        elif isinstance(field.annotation, str | ForwardRef):
            yield f"{option} has a type that cannot be found; is it imported at the top?"
        elif not is_option_type(field.annotation):
            yield f"{option} has type {_spell(field.annotation)}; possible are {SPELT}"


def _spell(annotation: object) -> str:
    return annotation.__name__ if inspect.isclass(annotation) else str(annotation)


def _is_own(value: object, plugin: object) -> bool:
    """Whether a function is defined in this module or class, not imported."""
    if not isinstance(value, FunctionType):
        return False
    return not isinstance(plugin, ModuleType) or value.__module__ == plugin.__name__


def _call(plugin: object, name: str) -> str:
    return f"{plugin.__name__}.{name}" if inspect.isclass(plugin) else name


def _implementations(plugin: object) -> Sequence[tuple[str, pluggy.HookImpl]]:
    """Everything under `@hookimpl`; a manager without specs accepts any name."""
    manager = pluggy.PluginManager("kdcore")
    manager.register(plugin, name="plugin")
    callers = manager.get_hookcallers(plugin) or ()
    return [(caller.name, each) for caller in callers for each in caller.get_hookimpls()]
