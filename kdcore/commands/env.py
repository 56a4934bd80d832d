"""`kdcore env`: the versions and the machine, for a bug report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from kdcore.cli.examples import examples
from kdcore.cli.main import plugin_manager
from kdcore.commands.output import AsJson, Plugins, print_json, tell
from kdcore.runs.environment import environment_of
from kdcore.terminal.formatting import size


@examples("kdcore env", "kdcore env --json")
def env(as_json: AsJson = False, plugins: Plugins = None) -> None:
    """Versions, machine, devices and plugins, for a bug report.

    No tokens or keys: of environment variables, only those that affect speed or precision.
    """
    said = environment_of(plugin_manager(plugins))
    if as_json:
        print_json(said)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for group, name, value in _lines(said):
        table.add_row(group, Text(name), Text(value))
    tell(table)


def _lines(said: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Group (once), name and value."""
    processor = said["processor"]
    cores = f"{processor['cores']} cores, {processor['threads']} threads, {processor['capability']}"
    yield "python", said["python"], said["platform"]
    yield "processor", processor["name"], cores
    for n, device in enumerate(said["devices"]):
        about = f"{size(device['memory'])}, CUDA {device['cuda']}, {device['capability']}"
        yield ("" if n else "device"), device["name"], about
    if not said["devices"]:
        yield "device", "none", "training runs on the processor"
    for group in ("packages", "plugins", "variables"):
        for n, (name, value) in enumerate(said[group].items()):
            yield ("" if n else group), name, value
