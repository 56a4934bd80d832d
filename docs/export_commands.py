"""Write docs/commands.md, a page of every verb: `python docs/export_commands.py`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import typer

from kdcore.cli.main import app

_HEAD = """\
# Commands

Every verb of kdcore with all it takes; `kdcore VERB --help` shows the same. What the exit codes
mean, shell completion and an editor's schema are in [command-line.md](command-line.md). This page
is written by `python docs/export_commands.py`.
"""


def page() -> str:
    """The whole page."""
    group = typer.main.get_command(app)
    with group.make_context("kdcore", [], resilient_parsing=True) as ctx:
        own = {point.name for point in entry_points(group="kdcore.commands") if _is_own(point)}
        verbs = {name: command_of(group, ctx, name) for name in group.list_commands(ctx)}
    kept = {name: verb for name, verb in verbs.items() if name in own or name in group.commands}
    return "\n".join([_HEAD, *_sections(kept, "kdcore")])


def _is_own(point: Any) -> bool:
    return point.dist is not None and point.dist.name == "kdcore"


def command_of(group: Any, ctx: Any, name: str) -> Any:
    """A verb with all that it takes, loaded."""
    return group.resolve_command(ctx, [name])[1]


def _sections(verbs: dict[str, Any], before: str) -> Iterator[str]:
    for name, verb in sorted(verbs.items()):
        inner = getattr(verb, "commands", None)
        if inner:
            yield from _sections(inner, f"{before} {name}")
        else:
            yield from _section(f"{before} {name}", verb)


def _section(name: str, verb: Any) -> Iterator[str]:
    yield f"## {name}\n"
    yield f"{_flat(verb.help)}\n"
    rows = [_row(each) for each in verb.params if not each.hidden]
    if rows:
        yield "| takes | what | default |\n|---|---|---|"
        yield from (f"| {' | '.join(row)} |" for row in rows)
        yield ""
    shown = (verb.epilog or "").split("\n\n")[1:]
    if shown:
        yield "\n".join(["```sh", *shown, "```", ""])


def _row(parameter: Any) -> list[str]:
    names = ", ".join(parameter.opts) if parameter.param_type_name == "option" else ""
    takes = " ".join(filter(None, (names, _value_of(parameter))))
    return [f"`{_escaped(takes)}`", _escaped(_flat(parameter.help)), _default(parameter)]


def _value_of(parameter: Any) -> str:
    if getattr(parameter, "is_flag", False):
        return ""
    choices = parameter.type_descriptor.choices
    named = "|".join(map(str, choices)) if choices else parameter.name.upper()
    return str(parameter.metavar or named)


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    return "" if value in (None, False, "") or callable(value) else f"`{value}`"


def _flat(text: str | None) -> str:
    return " ".join((text or "").split())


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    path = Path(__file__).with_name("commands.md")
    path.write_text(page(), encoding="utf-8")
    print(path)
