"""Shell completion: names of recipes, runs, plugins and components.

An argument's metavar says what it takes, so commands of other distributions are completed too:
RECIPE or FROM, RUN, PLUGIN, COMPONENT, alone or as in RECIPE|RUN.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcore.recipe.files import recipe_name, shipped_recipes
from kdcore.runs.folder import runs_in

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager

_Context = Any
_Parameter = Any


@dataclass(frozen=True)
class Candidate:
    """One completion, in the form that shells expect."""

    value: str
    type: str = "plain"
    help: str | None = None


def complete_arguments(command: Any, plugin_manager: Callable[[], PluginManager]) -> None:
    """Add completion to the parameters of a command, or of a group's commands."""
    for inner in getattr(command, "commands", {}).values():
        complete_arguments(inner, plugin_manager)
    for parameter in command.params:
        sources = [*_sources(parameter, plugin_manager)]
        if sources:
            parameter.shell_complete = partial(_candidates, sources)


def _sources(
    parameter: _Parameter, plugin_manager: Callable[[], PluginManager]
) -> Iterator[Callable[[_Context, str], Iterable[str]]]:
    known: Mapping[str, Callable[[_Context, str], Iterable[str]]] = {
        "RECIPE": _recipes,
        "FROM": _recipes,
        "RUN": _runs,
        "PLUGIN": lambda *_: (plugin.name for plugin in plugin_manager().plugins),
        "COMPONENT": lambda *_: _components(plugin_manager()),
    }
    if parameter.param_type_name == "argument":
        words = re.findall("[A-Z]+", (parameter.metavar or parameter.name).upper())
        yield from (known[word] for word in words if word in known)
    elif parameter.name == "logs":
        yield lambda *_: _components(plugin_manager(), ["logger"])


def _candidates(
    sources: Iterable[Callable[[_Context, str], Iterable[str]]], ctx: _Context, incomplete: str
) -> list[Candidate]:
    found = (name for source in sources for name in source(ctx, incomplete))
    return [Candidate(name) for name in dict.fromkeys(found) if name.startswith(incomplete)]


def _recipes(ctx: _Context, incomplete: str) -> Iterator[str]:
    yield from (recipe_name(path) for path in shipped_recipes())
    folder = Path(incomplete).parent if "/" in incomplete else Path()
    if folder.is_dir():
        yield from sorted(str(path) for path in folder.glob("*.toml"))


def _runs(ctx: _Context, incomplete: str) -> Iterator[str]:
    runs = runs_in(Path(ctx.params.get("out") or "runs"))
    yield from (run.name for run in runs)
    if runs:
        yield "last"


def _components(host: PluginManager, kinds: Iterable[str] | None = None) -> Iterator[str]:
    from kdcore.api.kinds import KINDS

    yield from (name for kind in kinds or KINDS for name in host.provided(kind))
