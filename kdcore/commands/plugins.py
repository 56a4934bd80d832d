"""`kdcore plugins`: installed plugins, their status, and every option."""

from __future__ import annotations

import difflib
import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import tomli_w
import typer
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kdcore.api.component import Component
from kdcore.api.kinds import KINDS
from kdcore.api.options import Option, describe, options_of
from kdcore.cli.examples import examples
from kdcore.cli.main import plugin_manager
from kdcore.commands.checks.verifying import verify
from kdcore.commands.output import AsJson, Plugins, print_json, tell
from kdcore.errors import UsageError
from kdcore.plugin.discovery import commands
from kdcore.plugin.manager import PluginManager

if TYPE_CHECKING:
    Plugin = Any  # an item of PluginManager.plugins


@examples(
    "kdcore plugins",
    "kdcore plugins skew-kl",
    "kdcore plugins mine -p ./mine.py --verify",
)
def plugins(
    name: Annotated[
        str | None,
        typer.Argument(metavar="PLUGIN|COMPONENT", help="Show this one, with all its options."),
    ] = None,
    as_json: AsJson = False,
    verified: Annotated[
        bool, typer.Option("--verify", help="Check that this plugin or verb keeps its contract.")
    ] = False,
    plugins: Plugins = None,
) -> None:
    """List plugins: source, components, and problems."""
    host = plugin_manager(plugins)
    if verified:
        if name is None:
            raise UsageError("--verify checks one plugin: kdcore plugins NAME --verify")
        _verify(host, name)
    elif name is not None:
        _one(host, name, as_json)
    elif as_json:
        print_json([_as_dict(plugin) for plugin in host.plugins])
    else:
        tell(_list(host.plugins))


def _as_dict(plugin: Plugin) -> dict[str, Any]:
    keys = ("name", "distribution", "version", "hooks", "components", "broken", "note", "blocked")
    return {"module": plugin.module_name, **{key: getattr(plugin, key) for key in keys}}


def _list(found: Iterable[Plugin]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("plugin", no_wrap=True)
    table.add_column("from", no_wrap=True)
    table.add_column("brings", overflow="fold")
    for plugin in found:
        origin = f"{plugin.distribution} {plugin.version}".strip()
        lines = list(_brings(plugin))
        table.add_row(Text(plugin.name, "bold"), origin, Text("\n").join(lines))
    return table


def _brings(plugin: Plugin) -> Iterator[Text]:
    if plugin.blocked:
        yield Text("blocked", "dim")
    if plugin.broken:
        yield Text(f"broken: {plugin.broken}", "red")
    for kind, names in plugin.components.items():
        if names:
            yield Text.assemble((f"{kind} ", "dim"), ", ".join(names))
    events = [hook for hook in plugin.hooks if hook not in _PROVIDERS]
    if events:
        yield Text.assemble(("hears ", "dim"), ", ".join(events))
    if plugin.note:
        yield Text(plugin.note, "yellow")


_PROVIDERS = {f"kdcore_{kind}{plural}" for kind in KINDS for plural in ("", "s", "es")}


def _one(host: PluginManager, name: str, as_json: bool) -> None:
    """A plugin's components, or every component of that name."""
    plugin = next((each for each in host.plugins if each.name == name), None)
    found = [
        (kind, given.cls)
        for kind in KINDS
        for given in host.provided(kind).values()
        if (given.plugin is plugin if plugin else given.cls.name == name)
    ]
    if plugin is None and not found:
        raise UsageError(f"there is no plugin or component {name!r}{_nearest(host, name)}")
    if as_json:
        said = _as_dict(plugin) if plugin else {}
        print_json({**said, "options": [_component_as_dict(kind, cls) for kind, cls in found]})
        return
    parts: list[RenderableType] = [_head(plugin)] if plugin else []
    parts += [_component(kind, cls) for kind, cls in found]
    tell(*parts)


def _verify(host: PluginManager, name: str) -> None:
    """Verify the plugin of this name, the one with a component of it, or the verb."""
    plugin = next((each for each in host.plugins if each.name == name), None)
    owners = (each.get(name) for each in map(host.provided, KINDS))
    found = plugin or next((each.plugin for each in owners if each is not None), None)
    verb = commands().get(name)
    if found is None and verb is None:
        said = f"there is no plugin, component or verb {name!r}"
        raise UsageError(f"{said}{_nearest(host, name, commands())}")
    verify(host, found, verb)


def _nearest(host: PluginManager, name: str, more: Iterable[str] = ()) -> str:
    names = {each.name for each in host.plugins} | {*more}
    names |= {each for kind in KINDS for each in host.provided(kind)}
    near = difflib.get_close_matches(name, sorted(names), 1)
    return f"; did you mean {near[0]!r}?" if near else "; kdcore plugins lists them"


def _head(plugin: Plugin) -> Text:
    origin = f"{plugin.distribution} {plugin.version}".strip()
    head = Text.assemble((plugin.name, "bold"), f"  {origin}, module {plugin.module_name}")
    module = sys.modules.get(plugin.module_name)
    if module is not None and module.__doc__:
        head.append(f"\n{_flowing(module.__doc__)}")
    for line in _brings(plugin) if plugin.broken or plugin.blocked or plugin.note else ():
        head.append("\n").append_text(line)
    return head


def _component(kind: str, cls: type[Component]) -> RenderableType:
    title = Text.assemble("\n", (f"{kind} ", "dim"), (cls.name, "bold"), f"\n{_doc(cls)}")
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(style="cyan")
    table.add_column(no_wrap=True)
    table.add_column(style="dim")
    for option in options_of(cls):
        default = "required" if option.required else _shown(option.default)
        description = "; ".join(filter(None, (option.bounds, option.doc)))
        table.add_row(option.name, Text(option.type), Text(default), Text(description))
    paste = Padding(Text(_table_to_paste(kind, cls), "green"), (1, 0, 0, 2))
    return Group(title, Padding(table, (0, 0, 0, 2)), paste) if table.row_count else title


def _doc(cls: type[Component]) -> str:
    """The class's own docstring, not an inherited one."""
    return _flowing(cls.__doc__ or "") if "__doc__" in vars(cls) else ""


def _flowing(text: str) -> str:
    """A docstring with each paragraph on one line, for terminals of any width."""
    return _LINE_END.sub(" ", inspect.cleandoc(text))


# A line break within a paragraph: no empty, indented, list or "option: ..." line follows.
_LINE_END = re.compile(r"(?<=\S)\n(?=[^\s*-])(?!\w+: )")


def _shown(default: object) -> str:
    """A default in recipe syntax."""
    if isinstance(default, Component):
        return f'{{use = "{default.name}"}}'
    return "not set" if default is None else json.dumps(default, default=str)


def _component_as_dict(kind: str, cls: type[Component]) -> dict[str, Any]:
    options = [vars(option) for option in options_of(cls)]
    for option in options:
        if isinstance(option["default"], Component):
            option["default"] = _shown(option["default"])
    return {"kind": kind, "name": cls.name, "doc": _doc(cls), "options": options}


_TABLES: Mapping[str, str] = {
    "loss": "[[loss]]",
    "patch": "[[student.patch]]",
    "eval": "[[eval]]",
    "logger": "[[log]]",
}
"""Tables of kinds with their own syntax; others use `[KIND]`."""


def _table_to_paste(kind: str, cls: type[Component]) -> str:
    """The table with every option at its default; required ones as comments."""
    head = [_TABLES.get(kind, f"[{kind}]"), f'use = "{cls.name}"']
    return "\n".join([*head, *_option_lines(options_of(cls))])


def _option_lines(options: list[Option]) -> Iterator[str]:
    for option in options:
        said = option.type + (f", {option.bounds}" if option.bounds else "")
        if option.required:
            yield f"# {option.name} =   required: {said}"
        elif option.default is None:
            yield f"# {option.name} =   {said}"
        elif isinstance(option.default, Component):
            yield f'{option.name} = {{use = "{option.default.name}"}}'
        elif any(isinstance(each, Component) for each in _items(option.default)):
            yield f"# {option.name} =   {_described(option.default)}"
        else:
            yield tomli_w.dumps({option.name: option.default}, multiline_strings=False).strip()


def _items(value: object) -> list[object]:
    return [*value] if isinstance(value, list) else []


def _described(value: object) -> str:
    """A default that contains components, in words."""
    return ", ".join(describe(each) for each in _items(value) if isinstance(each, Component))
