"""Loading of a plugin, and the `requires` of a recipe."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.metadata import requires as requires_of
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from kdcore.api.component import Component
from kdcore.plugin import validation
from kdcore.plugin.discovery import OWN, Candidate, shadow_note
from kdcore.plugin.validation import EVENTS, PROVIDERS

_log = logging.getLogger("kdcore")


@dataclass(eq=False)
class Plugin:
    """A plugin's status and content. Blocked and broken ones are not registered."""

    name: str  # for `-p no:NAME`
    distribution: str  # or the file as typed
    version: str  # empty for a file
    module_name: str
    hooks: tuple[str, ...] = ()
    components: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # names by kind
    broken: str | None = None  # the reason
    note: str | None = None  # for its author or user
    blocked: bool = False

    @classmethod
    def of(cls, candidate: Candidate, *, blocked: bool = False) -> Plugin:
        """The plugin before loading."""
        place = (candidate.name, candidate.distribution, candidate.version, candidate.module_name)
        return cls(*place, blocked=blocked)

    def add_notes(self, notes: Iterable[str]) -> None:
        """Append to the note."""
        self.note = "; ".join([*([self.note] if self.note else []), *notes]) or None

    @property
    def status(self) -> str:
        """ "on", "blocked" or "broken"."""
        return "blocked" if self.blocked else "broken" if self.broken else "on"

    @property
    def events(self) -> tuple[str, ...]:
        """The event hooks among its hooks."""
        return tuple(hook for hook in self.hooks if hook in EVENTS)

    @property
    def origin(self) -> str:
        """Distribution and version, or the file."""
        return f"{self.distribution} {self.version}".strip()

    def __str__(self) -> str:
        return f"the plugin {self.name!r} ({self.origin})"


@dataclass(frozen=True, eq=False)
class Loaded:
    """A plugin with its module and its component classes by kind, unless broken."""

    plugin: Plugin
    module: ModuleType | None = None
    classes: Mapping[str, Sequence[type[Component]]] = field(default_factory=dict)


class _BrokenError(Exception):
    """A plugin breaks the contract; the text says how."""


def load(candidate: Candidate) -> Loaded:
    """Import a plugin and collect its components. Any failure becomes `plugin.broken`."""
    plugin = Plugin.of(candidate)
    try:
        # Output of plugins must not end up in that of `--json`.
        with redirect_stdout(sys.stderr):
            plugin.add_notes(_installation_notes(candidate))
            return _checked(candidate, plugin)
    except (Exception, SystemExit) as error:
        plugin.broken = _cause(error)
        return Loaded(plugin)


def _checked(candidate: Candidate, plugin: Plugin) -> Loaded:
    with _old_names_of(plugin):
        module = candidate.load()
    if not isinstance(module, ModuleType):
        raise _BrokenError(f"its entry point {candidate.module_name!r} is not a module")
    plugin.hooks = validation.hook_names(module)
    plugin.add_notes(validation.forgotten_hooks(module))
    _insist(validation.hook_errors(module, EVENTS | PROVIDERS.keys()))
    brought = {kind: hook for hook, kind in PROVIDERS.items() if hook in plugin.hooks}
    classes = {kind: _ask(module, hook, kind) for kind, hook in brought.items()}
    for found in classes.values():
        for cls in found:
            plugin.add_notes(validation.forgotten_hooks(cls))
    plugin.components = {kind: _names(kind, found) for kind, found in classes.items() if found}
    return Loaded(plugin, module, classes)


@contextmanager
def _old_names_of(plugin: Plugin) -> Iterator[None]:
    """Note the use of renamed public names of kdcore."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeprecationWarning)
        yield
    for each in caught:
        said = str(each.message)
        if issubclass(each.category, DeprecationWarning) and said.startswith("kdcore."):
            _log.warning("%s uses an old name: %s", plugin, said)
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def _ask(module: ModuleType, hook: str, kind: str) -> Sequence[type[Component]]:
    """The result of a provider hook, validated class by class."""
    given = getattr(module, hook)()
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise _BrokenError(f"{hook} returned {given!r}, not a sequence of classes")
    _insist(problem for each in given for problem in validation.component_errors(kind, each))
    return given


def _names(kind: str, classes: Sequence[type[Component]]) -> tuple[str, ...]:
    names = tuple(cls.name for cls in classes)
    _insist(f"it brings two of the kind {kind} named {name!r}" for name in _repeated(names))
    return names


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for position, name in enumerate(names) if name in names[:position]]


def _insist(errors: Iterable[str]) -> None:
    found = list(errors)
    if found:
        raise _BrokenError("; ".join(found))


def _installation_notes(candidate: Candidate) -> Iterator[str]:
    """Notes before the import, which may fail for the same reason."""
    if candidate.entry_point is None or candidate.entry_point.dist is None:
        return
    top = candidate.entry_point.module.partition(".")[0]
    spec = find_spec(top)
    if spec is not None and spec.has_location and spec.origin is not None:
        shadow = shadow_note(top, Path(spec.origin), candidate.entry_point.dist)
        if shadow:
            yield shadow
    if candidate.distribution != OWN:
        yield from own_version_notes(candidate.entry_point.dist)


def _cause(error: BaseException) -> str:
    """The error on one line, with the last frame outside Python and this package."""
    if isinstance(error, _BrokenError):
        return str(error)
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    here = Path(__file__).parents[1]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if here not in file.parents and "importlib" not in frame.filename:
            return f"{said} ({file.name}, line {frame.lineno})"
    return said


def check_requirements(requires: Iterable[str]) -> list[str]:
    """Unmet requirements among `["kdcore>=0.2", "kdcore-alpha"]`, one message each."""
    messages = []
    for text in requires:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            reason = str(error).splitlines()[0]
            messages.append(f"{text!r} is not a requirement such as 'kdcore>=0.1': {reason}")
        else:
            messages += _unmet(requirement)
    return messages


def own_version_notes(plugin: Distribution) -> Sequence[str]:
    """Notes on a plugin whose distribution requires another version of kdcore."""
    try:
        requirements = [Requirement(text) for text in plugin.requires or ()]
    except InvalidRequirement:
        return []
    mine = [each for each in requirements if canonicalize_name(each.name) == OWN]
    return [message for each in mine for message in _unmet(each)]


def _unmet(requirement: Requirement, extra: str = "") -> Sequence[str]:
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
        return []
    requirement.marker = None
    try:
        installed = distribution(requirement.name).version
    except PackageNotFoundError:
        return [f"{requirement.name} is not installed: pip install '{requirement}'"]
    if not requirement.specifier.contains(installed, prereleases=True):
        wanted = f"{requirement.name}{requirement.specifier}"
        return [f"{wanted} is needed, {installed} is installed: pip install '{requirement}'"]
    return [message for name in sorted(requirement.extras) for message in _extra(requirement, name)]


def _extra(requirement: Requirement, extra: str) -> list[str]:
    """The unmet requirements of an extra, such as `kdcore[lora]`."""
    needed = [Requirement(text) for text in requires_of(requirement.name) or ()]
    only_here = [each for each in needed if each.marker and not each.marker.evaluate({"extra": ""})]
    return [message for each in only_here for message in _unmet(each, extra)]
