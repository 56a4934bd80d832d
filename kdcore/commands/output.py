"""Standard output: as wide as its terminal, untruncated into a pipe."""

from __future__ import annotations

import json
import shutil
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Plugins = Annotated[
    list[str] | None,
    typer.Option("-p", metavar="PLUGIN", help="no:NAME blocks a plugin, ./FILE.py adds one."),
]

_PIPE = 160  # columns, if the reader's width is unknown


def tell(*parts: RenderableType) -> None:
    """Print results. Into a pipe: no colours, padding or truncation."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = shutil.get_terminal_size((_PIPE, 24)).columns
        with console.capture() as capture:
            console.print(*parts, sep="\n")
        print("\n".join(line.rstrip() for line in capture.get().splitlines()))
    else:
        console.print(*parts, sep="\n")


def print_json(value: Any) -> None:
    """Machine-readable results."""
    print(json.dumps(value, indent=1, default=str, ensure_ascii=False))
