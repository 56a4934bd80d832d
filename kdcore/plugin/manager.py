"""The plugin manager: component registry and hook dispatch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pluggy

from kdcore.api import hookspecs
from kdcore.api.component import Component
from kdcore.api.kinds import KINDS
from kdcore.api.observers import Logger
from kdcore.errors import (
    Interrupted,
    KdcoreError,
    PluginError,
    RunError,
    UsageError,
    did_you_mean,
)
from kdcore.files import is_full
from kdcore.guard import stdout_to_stderr
from kdcore.plugin.discovery import Candidate, candidates
from kdcore.plugin.loading import Plugin, load

log = logging.getLogger("kdcore")


class Events:
    """Dispatches events one implementation at a time, so that errors name theirs.

    `describe` puts a module or component into words.
    """

    def __init__(self, describe: Callable[[object], str]) -> None:
        self._manager = pluggy.PluginManager("kdcore")
        self._manager.add_hookspecs(hookspecs)
        self._describe = describe

    def add(self, module: object, name: str) -> None:
        """Register the hooks of a plugin under its name. ValueError if it is registered already."""
        self._manager.register(module, name)

    def remove(self, module: object) -> None:
        """Unregister a plugin or component, if registered."""
        if self._manager.get_name(module) is not None:
            self._manager.unregister(module)

    @contextmanager
    def listening(self, components: Iterable[Component]) -> Iterator[None]:
        """Also call these instances inside the block: in their order, before modules."""
        # pluggy calls the latest first. The same instance may be at two places of a recipe.
        wanted = reversed(list({id(each): each for each in components}.values()))
        added = [each for each in wanted if self._manager.get_name(each) is None]
        try:
            for component in added:
                self._manager.register(component, name=f"component {id(component)}")
            yield
        finally:
            for component in added:
                self.remove(component)

    def emit(self, hook: str, arguments: dict[str, object]) -> None:
        """Call every implementation, even after one has failed; then raise the first error.

        A logger that raises is unregistered with one warning instead; its RunError ends the run.
        """
        failures: list[KdcoreError] = []
        # A listener must not change what the next one gets.
        arguments = {
            name: MappingProxyType(value) if isinstance(value, dict) else value
            for name, value in arguments.items()
        }
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        for implementation in reversed(caller.get_hookimpls()):
            try:
                with stdout_to_stderr():
                    implementation.function(*(arguments[name] for name in implementation.argnames))
            except Interrupted:
                raise
            except (Exception, SystemExit) as error:
                failures += self._judged(hook, implementation.plugin, error)
        if failures:
            raise failures[0]

    def _judged(
        self, hook: str, plugin: object, error: Exception | SystemExit
    ) -> list[KdcoreError]:
        said = f"{type(error).__name__}: {error}"
        # A full disk is not the logger's error, and the record would be lost.
        if isinstance(plugin, Logger) and not isinstance(error, RunError) and not is_full(error):
            self.remove(plugin)
            log.warning("%s raised in %s and is off now: %s", self._describe(plugin), hook, said)
            return []
        if isinstance(error, KdcoreError):
            return [error]
        failure = PluginError(f"{self._describe(plugin)} raised in {hook}: {said}")
        failure.__cause__ = error
        return [failure]


@dataclass(frozen=True)
class Provided:
    """A component class and the plugin that provides it."""

    cls: type[Component]
    plugin: Plugin


class PluginManager:
    """All plugins, loaded one by one: errors in one are reported and do not affect others.

    `off` blocks plugins by name. `files` adds plugin files, which must exist and load.
    """

    def __init__(self, off: Iterable[str] = (), files: Iterable[str | Path] = ()) -> None:
        self.plugins: list[Plugin] = []
        self._found: dict[str, dict[str, list[Provided]]] = {kind: {} for kind in KINDS}
        self._owners: dict[object, Plugin] = {}  # of modules and component classes
        self._events = Events(self.describe)
        blocked = tuple(off)
        for candidate in candidates(files):
            self._add(candidate, blocked=candidate.name in blocked)
        self._note_conflicts()
        self._warn_of_unknown(blocked)

    def provided(self, kind: str) -> Mapping[str, Provided]:
        """The components of a kind by name, without names that several plugins provide."""
        return {name: each[0] for name, each in self._found[kind].items() if len(each) == 1}

    def conflicts(self, kind: str) -> Mapping[str, Sequence[Provided]]:
        """The names of a kind that several plugins provide, with all providers."""
        return {name: tuple(each) for name, each in self._found[kind].items() if len(each) > 1}

    def why_missing(self, kind: str, name: str) -> str:
        """Why `provided(kind)` lacks this name, and what to type; for recipe errors."""
        rivals = self.conflicts(kind).get(name)
        if rivals:
            plugins = " and ".join(str(each.plugin) for each in rivals)
            ways = " or ".join(f"-p no:{each.plugin.name}" for each in rivals)
            return f"the {kind} {name!r} comes from {plugins}: choose with {ways}"
        sentences = [f"no {kind} is named {name!r}{self._nearest(kind, name)}"]
        sentences += filter(None, (_why_absent(plugin, kind) for plugin in self.plugins))
        return ". ".join(sentences).replace("?.", "?")

    def emit(self, hook: str, /, **arguments: object) -> None:
        """Dispatch an event: `host.emit("kdcore_log", run=run, record=record)`.

        A logger that raises anything but RunError is disabled for the rest of the run, with one
        warning. Other errors become a PluginError, raised after all implementations were called.
        """
        self._events.emit(hook, arguments)

    def listening(self, components: Iterable[Component]) -> AbstractContextManager[None]:
        """Let component instances receive events inside the block; list nested ones too."""
        return self._events.listening(components)

    def describe(self, plugin: object) -> str:
        """A module or component in words: "the loss 'kl' of the plugin 'losses' (kdcore 0.1.0)"."""
        if not isinstance(plugin, Component):
            return str(self._owners.get(plugin, plugin))
        kind = next((kind for kind, base in KINDS.items() if isinstance(plugin, base)), "component")
        owner = self._owners.get(type(plugin), f"the module {type(plugin).__module__}")
        return f"the {kind} {plugin.name!r} of {owner}"

    def _add(self, candidate: Candidate, *, blocked: bool) -> None:
        if blocked:
            self.plugins.append(Plugin.of(candidate, blocked=True))
            return
        loaded = load(candidate)
        plugin, module = loaded.plugin, loaded.module
        self.plugins.append(plugin)
        if module in self._owners:
            plugin.broken = f"its module is that of {self._owners[module]}"
        elif module is not None:
            self._owners[module] = plugin
            self._events.add(module, plugin.name)
            for kind, classes in loaded.classes.items():
                self._enter(kind, classes, plugin)
        if plugin.broken and candidate.entry_point is None:
            raise UsageError(f"-p {candidate.distribution}: {plugin.broken}")

    def _enter(self, kind: str, classes: Sequence[type[Component]], plugin: Plugin) -> None:
        for cls in classes:
            self._owners.setdefault(cls, plugin)
            self._found[kind].setdefault(cls.name, []).append(Provided(cls, plugin))

    def _nearest(self, kind: str, name: str) -> str:
        """A suggestion; else the kinds that have the name; else all names."""
        names = sorted(self._found[kind])
        others = [other for other in KINDS if name in self._found[other]]
        if others:
            return f", but a {others[0]} is"
        return did_you_mean(name, names) or (f"; there are {', '.join(names)}" if names else "")

    def _note_conflicts(self) -> None:
        for kind in KINDS:
            for name, rivals in self.conflicts(kind).items():
                for mine in rivals:
                    others = " and ".join(str(each.plugin) for each in rivals if each is not mine)
                    mine.plugin.add_notes([f"the {kind} {name!r} comes from {others} too"])

    def _warn_of_unknown(self, blocked: Sequence[str]) -> None:
        names = [plugin.name for plugin in self.plugins]
        for name in blocked:
            if name not in names:
                log.warning("-p no:%s: there is no such plugin%s", name, did_you_mean(name, names))


def _why_absent(plugin: Plugin, kind: str) -> str:
    """Why a plugin does not provide a component of this kind, if something prevents it."""
    said = str(plugin)[0].upper() + str(plugin)[1:]
    if plugin.blocked:
        return f"{said} is blocked"
    if plugin.broken:
        return f"{said} is broken: {plugin.broken}"
    return f"{said}: {plugin.note}" if plugin.note and kind not in plugin.components else ""
