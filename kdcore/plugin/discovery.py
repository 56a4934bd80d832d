"""Plugin discovery: entry points and files, and modules that shadow them.

Imports nothing until `load` is called.

Top-level modules share one namespace: a file of the same name in the current folder, or in another
distribution, silently replaces the right one. Editable installs record their folder instead of
their files, so that only a file outside that folder is noticed.
"""

from __future__ import annotations

import difflib
import os
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import Distribution, EntryPoint, PackagePath, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

from kdcore.errors import UsageError

OWN = "kdcore"  # this distribution; also the entry-point group and the prefix of every hook


@dataclass(frozen=True)
class Candidate:
    """A plugin that can be loaded. `version` is empty if `distribution` is the path of a file."""

    name: str
    distribution: str
    version: str
    module_name: str
    load: Callable[[], object]
    entry_point: EntryPoint | None = None


def candidates(files: Iterable[str | Path] = ()) -> Iterator[Candidate]:
    """All installed plugins, kdcore's own first, then files. Names are unique."""
    taken: set[str] = set()
    installed = (_from_entry_point(point) for point in sorted_entry_points(OWN))
    for candidate in (*installed, *_from_files(files)):
        name = candidate.name
        if name in taken:
            name = f"{candidate.distribution}:{candidate.name}"
        taken.add(name)
        yield replace(candidate, name=name)


def commands() -> Mapping[str, EntryPoint]:
    """The commands of installed distributions, by name; kdcore's own take precedence."""
    found: dict[str, EntryPoint] = {}
    for point in sorted_entry_points("kdcore.commands"):
        found.setdefault(point.name, point)
    return found


def sorted_entry_points(group: str) -> list[EntryPoint]:
    """The group's entry points in an order independent of `sys.path`: kdcore's first."""

    owners: dict[Distribution | None, str] = {}  # reading metadata is slow

    def place(point: EntryPoint) -> tuple[bool, str, str]:
        if point.dist not in owners:
            owners[point.dist] = _owner(point)[0]
        return (owners[point.dist] != OWN, owners[point.dist], point.name)

    return sorted(entry_points(group=group), key=place)


def _from_entry_point(point: EntryPoint) -> Candidate:
    return Candidate(point.name, *_owner(point), point.value, point.load, point)


def _owner(point: EntryPoint) -> tuple[str, str]:
    """Distribution and version; empty for a partly removed one without metadata."""
    try:
        name, version = (point.dist.name, point.dist.version) if point.dist else (None, None)
    except Exception:  # newer Pythons raise; one such must not hide the others
        name, version = None, None
    return name or "?", version or ""


def _from_files(files: Iterable[str | Path]) -> Iterator[Candidate]:
    seen: set[Path] = set()
    for typed in files:
        path = Path(os.path.expanduser(typed))
        if not os.path.isfile(path):
            raise UsageError(_no_such_file(str(typed), path))
        path = path.resolve()
        if path not in seen:
            seen.add(path)
            module_name = _module_name(path)
            name = path.stem.removeprefix("kdcore_") or path.stem  # as for an entry point
            yield Candidate(name, str(typed), "", module_name, _loader(path, module_name))


def _no_such_file(typed: str, path: Path) -> str:
    if os.path.isdir(path):
        return f"-p {typed}: this is a folder; give the Python file of the plugin"
    siblings = (
        [other.name for other in path.parent.glob("*.py")] if os.path.isdir(path.parent) else []
    )
    near = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f"; did you mean {path.parent / near[0]}?" if near else ""
    return f"-p {typed}: there is no such file{hint}"


def _module_name(path: Path) -> str:
    """A name that no import finds by accident, so a plugin file named random.py is harmless."""
    return f"kdcore_plugin_file_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"


def _loader(path: Path, module_name: str) -> Callable[[], ModuleType]:
    def load() -> ModuleType:
        spec = spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path.name} is not a Python file: its name does not end in .py")
        module = module_from_spec(spec)
        # pydantic looks up a class's annotations in its module in sys.modules.
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
        return module

    return load


def reserved_modules() -> frozenset[str]:
    """The top-level modules of kdcore's own plugins and commands."""
    points = [*sorted_entry_points(OWN), *sorted_entry_points("kdcore.commands")]
    own = (point for point in points if point.dist is not None and point.dist.name == OWN)
    return frozenset({OWN, *(point.value.split(":")[0].split(".")[0] for point in own)})


def shadow_note(module_name: str, file: Path, distribution: Distribution) -> str | None:
    """A note if `file` is not the distribution's own module; else None."""
    if _is_own(module_name, file, distribution):
        return None
    top = module_name.partition(".")[0]
    note = f"the module {top} was imported from {file}, which is not what {distribution.name} "
    note += "installed: rename that file"
    if top in reserved_modules():
        note += f" ({top} is a module of kdcore's own)"
    return note


def _is_own(module_name: str, file: Path, distribution: Distribution) -> bool:
    folder = _editable_folder(distribution)
    if folder is not None:
        return file.resolve().is_relative_to(folder)
    stem = module_name.replace(".", "/")
    for recorded in distribution.files or ():
        if str(recorded) in (f"{stem}.py", f"{stem}/__init__.py"):
            return _is_same(recorded, file, distribution)
    # Without a record (compiled modules, system packages) there is nothing to compare.
    return True


def _is_same(recorded: PackagePath, file: Path, distribution: Distribution) -> bool:
    if Path(str(distribution.locate_file(recorded))).resolve() != file.resolve():
        return False
    # Another distribution may have been installed over it.
    if recorded.hash is None or recorded.hash.mode != "sha256":
        return True
    digest = urlsafe_b64encode(sha256(file.read_bytes()).digest()).rstrip(b"=")
    return digest.decode() == recorded.hash.value


def _editable_folder(distribution: Distribution) -> Path | None:
    import json
    from urllib.request import url2pathname  # imports http and ssl, which would slow down --help

    text = distribution.read_text("direct_url.json")
    source = json.loads(text) if text else {}
    if not source.get("dir_info", {}).get("editable"):
        return None
    return Path(url2pathname(urlsplit(source["url"]).path)).resolve()
