"""What a verb says of itself, read from its source without importing it."""

from __future__ import annotations

import ast
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path


def first_sentence(verb: EntryPoint) -> str:
    """The first line of the function's docstring, or of its module's; "" where it is unreadable."""
    top, *inner = verb.module.split(".")
    spec = find_spec(top)
    if spec is None or spec.origin is None:
        return ""
    path = Path(spec.origin)
    if inner:
        path = path.parent.joinpath(*inner).with_suffix(".py")
    try:
        module = ast.parse(path.read_text())
    except (OSError, SyntaxError, ValueError):
        return ""
    functions = (n for n in module.body if isinstance(n, ast.FunctionDef) and n.name == verb.attr)
    text = ast.get_docstring(next(functions, module)) or ""
    return text.split("\n")[0]
