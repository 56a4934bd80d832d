"""`kdcore plugins NAME --verify`: checks the contract of every component of a plugin."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from kdcore.api.component import Component
from kdcore.api.kinds import KINDS
from kdcore.api.options import options_of
from kdcore.commands.output import tell
from kdcore.errors import KdcoreError, PluginError
from kdcore.plugin.loading import Plugin
from kdcore.plugin.manager import PluginManager

_STYLES = {"kept": "green", "not checked": "yellow", "broken": "bold red"}


@dataclass(frozen=True)
class Verdict:
    """The result for one part of a plugin."""

    part: str  # a component with its kind, or "imports"
    found: Literal["kept", "not checked", "broken"]
    reason: str = ""


def verify_plugin(host: PluginManager, plugin: Plugin) -> None:
    """Report the results. Exits with 3 if a component breaks its contract."""
    verdicts = [*verdicts_of(host, plugin)]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in verdicts:
        table.add_row(each.part, Text(each.found, _STYLES[each.found]), Text(each.reason))
    tell(Text(f"{plugin.name}  {plugin.origin}", "bold"), table)
    if any(each.found == "broken" for each in verdicts):
        raise typer.Exit(PluginError.exit_code)


def verdicts_of(host: PluginManager, plugin: Plugin) -> Iterator[Verdict]:
    """The plugin itself, its imports, and each of its components with its defaults."""
    if plugin.blocked or plugin.broken:
        found: Literal["not checked", "broken"] = "broken" if plugin.broken else "not checked"
        yield Verdict("plugin", found, plugin.broken or "it is blocked")
        return
    private = sorted({*_private_imports(plugin.module_name)})
    if private:
        yield Verdict("imports", "broken", f"private and may change: {', '.join(private)}")
    else:
        yield Verdict("imports", "kept")
    for kind in KINDS:
        for name, given in host.provided(kind).items():
            if given.plugin is plugin:
                yield _of_component(f"{kind} {name}", given.cls)


def _of_component(part: str, cls: type[Component]) -> Verdict:
    needed = [option.name for option in options_of(cls) if option.required]
    if needed:
        said = f"{' and '.join(needed)} must be given: kdcore.testing.check does, in a test"
        return Verdict(part, "not checked", said)
    from kdcore.testing import check

    try:
        check(cls())
    except AssertionError as error:
        return Verdict(part, "broken", str(error))
    except ValidationError as error:
        return Verdict(part, "not checked", str(error.errors()[0]["msg"]))
    except PluginError as error:
        return Verdict(part, "broken", str(error))
    except KdcoreError as error:
        return Verdict(part, "not checked", str(error).split("\n")[0])
    except Exception as error:  # a plugin may raise anything
        return Verdict(part, "broken", f"raised {type(error).__name__}: {error}")
    return Verdict(part, "kept")


def _private_imports(module_name: str) -> Iterator[str]:
    """Imports of private names from kdcore; modules of kdcore itself may have them."""
    module = sys.modules[module_name]
    if module.__name__.partition(".")[0] == "kdcore":
        return
    for path in _files(module):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield from _private(node)


def _files(module: Any) -> list[Path]:
    path = Path(inspect.getsourcefile(module) or "")
    return sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]


def _private(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        if node.module == "kdcore":
            names = {alias.name for alias in node.names} - {*import_module("kdcore").__all__}
            yield from (f"kdcore.{name}" for name in names)
        elif node.module.startswith("kdcore.") and node.module != "kdcore.testing":
            yield node.module
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.startswith("kdcore."))
