"""`kdcore plugins NAME --verify`: checks the contract of every component of a plugin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint
from typing import Literal

import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from kdcore.api.component import Component
from kdcore.api.kinds import KINDS
from kdcore.api.options import options_of
from kdcore.commands.checks.verbs import verdicts_of_verb
from kdcore.commands.checks.verdicts import Verdict, of_imports
from kdcore.commands.output import tell
from kdcore.errors import KdcoreError, PluginError
from kdcore.plugin.loading import Plugin
from kdcore.plugin.manager import PluginManager

_STYLES = {"kept": "green", "not checked": "yellow", "broken": "bold red"}


def verify(host: PluginManager, plugin: Plugin | None, verb: EntryPoint | None) -> None:
    """Report the results for a plugin, a verb, or both. Exits with 3 if a contract is broken."""
    verdicts: list[Verdict] = []
    title = ""
    if verb is not None:
        origin = f"{verb.dist.name} {verb.dist.version}" if verb.dist else verb.value
        title = f"{verb.name}  {origin}"
        verdicts += verdicts_of_verb(verb)
    if plugin is not None:
        title = f"{plugin.name}  {plugin.origin}"
        verdicts += verdicts_of(host, plugin)
    _report(title, verdicts)


def _report(title: str, verdicts: Sequence[Verdict]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in verdicts:
        table.add_row(each.part, Text(each.found, _STYLES[each.found]), Text(each.reason))
    tell(Text(title, "bold"), table)
    if any(each.found == "broken" for each in verdicts):
        raise typer.Exit(PluginError.exit_code)


def verdicts_of(host: PluginManager, plugin: Plugin) -> Iterator[Verdict]:
    """The plugin itself, its imports, and each of its components with its defaults."""
    if plugin.blocked or plugin.broken:
        found: Literal["not checked", "broken"] = "broken" if plugin.broken else "not checked"
        yield Verdict("plugin", found, plugin.broken or "it is blocked")
        return
    yield of_imports(plugin.module_name)
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
        return Verdict(part, "not checked", _reason(error))
    except PluginError as error:
        return Verdict(part, "broken", str(error))
    except KdcoreError as error:
        return Verdict(part, "not checked", str(error).split("\n")[0])
    except Exception as error:  # a plugin may raise anything
        return Verdict(part, "broken", f"raised {type(error).__name__}: {error}")
    return Verdict(part, "kept")


def _reason(error: ValidationError) -> str:
    """The first reason, in the component's own words where it gives one."""
    first = error.errors()[0]
    return str(first.get("ctx", {}).get("error", first["msg"]))
