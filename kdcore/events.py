"""The event hooks: what happens in a run, told to plugin modules and to the run's components."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from types import MappingProxyType

import pluggy

from kdcore import hookspecs
from kdcore.api import Component, Logger
from kdcore.blame import stdout_spared
from kdcore.errors import Interrupted, KdcoreError, PluginError
from kdcore.full_disk import is_full

log = logging.getLogger("kdcore")


class Events:
    """Calls implementations one at a time, so that one can be switched off and faults have a name.

    `describe` says in words whose implementation a module or component is.
    """

    def __init__(self, describe: Callable[[object], str]) -> None:
        self._manager = pluggy.PluginManager("kdcore")
        self._manager.add_hookspecs(hookspecs)
        self._describe = describe

    def add(self, module: object, name: str) -> None:
        """Register the hooks of a plugin under its name; ValueError if it is registered already."""
        self._manager.register(module, name)

    def remove(self, module: object) -> None:
        """Unregister a plugin or a component; nothing where it is not registered."""
        if self._manager.get_name(module) is not None:
            self._manager.unregister(module)

    @contextmanager
    def listening(self, components: Iterable[Component]) -> Iterator[None]:
        """Call these instances too until the block ends: in their order, before the modules."""
        # pluggy calls the latest first. The same instance may stand in a recipe at two places.
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
        """Call every implementation, also after one has failed; then raise the first failure.

        A component of the kind Logger that raises is unregistered with one warning instead.
        """
        failures: list[KdcoreError] = []
        # One listener must not change what the next one hears.
        arguments = {
            name: MappingProxyType(value) if isinstance(value, dict) else value
            for name, value in arguments.items()
        }
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        for implementation in reversed(caller.get_hookimpls()):
            try:
                # Results are what kdcore_runs_end may print; all else goes where messages go.
                with nullcontext() if hook == "kdcore_runs_end" else stdout_spared():
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
        # A full disk is no logger's fault, and the run's record would be lost.
        if isinstance(plugin, Logger) and not is_full(error):
            self.remove(plugin)
            log.warning("%s raised in %s and is off now: %s", self._describe(plugin), hook, said)
            return []
        if isinstance(error, KdcoreError):
            return [error]
        failure = PluginError(f"{self._describe(plugin)} raised in {hook}: {said}")
        failure.__cause__ = error
        return [failure]
