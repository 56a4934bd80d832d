"""What `kdcore plugins NAME --verify` found of one part of a plugin."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Verdict:
    """The result for one part of a plugin."""

    part: str  # a component with its kind, or "imports"
    found: Literal["kept", "not checked", "broken"]
    reason: str = ""


def of_imports(module_name: str) -> Verdict:
    """Whether a plugin's module, or the package it is, imports only public names of kdcore."""
    private = sorted({*_private_imports(module_name)})
    if private:
        return Verdict("imports", "broken", f"private and may change: {', '.join(private)}")
    return Verdict("imports", "kept")


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
