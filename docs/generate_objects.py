"""Write docs/objects.md, the reference of what the engine hands to plugins, from the source.

python docs/generate_objects.py
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "objects.md"
OBJECTS = {
    "Run": "kdcore/api/run.py",
    "Tokens": "kdcore/api/tokens.py",
    "Batch": "kdcore/data/batch.py",
    "SparseLogits": "kdcore/data/batch.py",
    "Record": "kdcore/api/hookspecs.py",
    "Stage": "kdcore/api/run.py",
}
HEAD = """\
# What the engine hands to plugins

This page lists the fields and methods of the objects that hooks and component methods receive, with
shapes and units. `python docs/generate_objects.py` writes it from the source. Import the classes
from `kdcore` to annotate your code.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section(name, ROOT / file) for name, file in OBJECTS.items())])


def section(name: str, path: Path) -> str:
    """A class: its docstring, its fields and its methods."""
    text = path.read_text()
    node = next(
        each
        for each in ast.parse(text).body
        if isinstance(each, ast.ClassDef) and each.name == name
    )
    lines = text.split("\n")
    fields = [row for each in node.body if (row := field(each, lines))]
    methods = [row for each in node.body if (row := method(each))]
    parts = [f"## {name}", "", ast.get_docstring(node) or "", ""]
    parts += ["| field | type | |", "|---|---|---|", *fields, ""]
    if methods:
        parts += ["| method | |", "|---|---|", *methods, ""]
    return "\n".join(parts)


def field(node: ast.stmt, lines: list[str]) -> str | None:
    """A row for an annotated attribute, with its comment, or for a property."""
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        name, kind = node.target.id, ast.unparse(node.annotation)
        said = comment(node, lines)
    elif isinstance(node, ast.FunctionDef) and is_property(node):
        assert node.returns is not None
        name, kind = node.name, ast.unparse(node.returns)
        said = summary(node)
    else:
        return None
    return None if name.startswith("_") else f"| `{name}` | `{cell(kind)}` | {cell(said)} |"


def method(node: ast.stmt) -> str | None:
    """A row for a public method."""
    if not isinstance(node, ast.FunctionDef) or is_property(node) or node.name.startswith("_"):
        return None
    arguments = ast.unparse(node.args).removeprefix("self, ").removeprefix("self")
    returns = ast.unparse(node.returns) if node.returns else "None"
    return f"| `{cell(f'{node.name}({arguments}) -> {returns}')}` | {cell(summary(node))} |"


def is_property(node: ast.FunctionDef) -> bool:
    """Whether it is read like a field."""
    names = {each.id for each in node.decorator_list if isinstance(each, ast.Name)}
    return bool(names & {"property", "cached_property"})


def comment(node: ast.AnnAssign, lines: list[str]) -> str:
    """The comment behind an attribute."""
    assert node.end_lineno is not None and node.end_col_offset is not None
    found = re.match(r".*?#\s*(.*)", lines[node.end_lineno - 1][node.end_col_offset :])
    return found[1] if found else ""


def summary(node: ast.FunctionDef) -> str:
    """A docstring in one line."""
    return " ".join((ast.get_docstring(node) or "").split())


def cell(text: str) -> str:
    """Fit for a table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
