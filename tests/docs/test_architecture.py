"""docs/architecture.md names files and symbols that are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| .+ \| `(kdcore/[\w/]+\.py)` \| `(\w+)` \|$", TEXT, re.MULTILINE)


def test_the_table_is_long_enough():
    assert len(ROWS) >= 25


@pytest.mark.parametrize(("file", "symbol"), ROWS, ids=lambda each: each)
def test_a_symbol_is_where_the_table_says(file, symbol):
    names = set()
    for node in ast.parse((ROOT / file).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    assert symbol in names


def test_every_package_is_in_the_picture():
    picture = TEXT[TEXT.index("```mermaid") :].partition("```\n")[0]
    folders = {path.name for path in (ROOT / "kdcore").iterdir() if (path / "__init__.py").exists()}
    assert not {name for name in folders if not re.search(rf"\b{name}\b", picture)}


def test_files_that_contributing_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:kdcore|docs|tests|plugins)/[\w./]*)`", text):
        assert (ROOT / path).exists(), path
