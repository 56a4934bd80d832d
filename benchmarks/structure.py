"""Measure the layout of a Python package: sizes of files and functions, circles, public names.

    python benchmarks/structure.py                     kdcore's engine, its verbs, and the plugins
    python benchmarks/structure.py FOLDER [FOLDER...]  packages by their folders, each a line

Lines are those of `wc -l`. Imports count wherever they stand: at the top, in functions and behind
TYPE_CHECKING. A circle is a set of modules each of which leads to every other one by imports.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("files", "folders", "lines", "of code", "median", "90 %", "longest")
COLUMNS += ("functions", "median", "90 %", "circles", "public names")

Imports = Mapping[str, set[str]]
"""By module: the modules of its own package that it imports."""


def row_of(folder: Path, *, without: str = "") -> list[object]:
    """What is measured of a package, in the order of COLUMNS; `without` names a folder in it."""
    files = [
        path
        for path in sorted(folder.rglob("*.py"))
        if not without or folder / without not in path.parents
    ]
    trees = {path: ast.parse(path.read_text("utf-8")) for path in files}
    lines = [path.read_text("utf-8").count("\n") for path in files]
    functions = [length for tree in trees.values() for length in _functions(tree)]
    home = folder.parent if (folder / "__init__.py").exists() else folder
    circles = circles_of(imports_of(home, trees))
    return [
        len(files),
        len({path.parent for path in files}),
        f"{sum(lines):,}",
        f"{sum(map(_code, files, trees.values())):,}",
        *(round(each) for each in _spread(lines)),
        max(lines),
        f"{len(functions):,}",
        *(round(each) for each in _spread(functions)),
        ", ".join(map(str, circles)) or "none",
        _public(trees, folder),
    ]


def _spread(numbers: Sequence[int]) -> tuple[float, float]:
    """Median and ninth decile."""
    tenths = statistics.quantiles(numbers, n=10, method="inclusive") if numbers[1:] else [0] * 9
    return statistics.median(numbers), tenths[8]


def _functions(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.end_lineno - node.lineno + 1


def _code(path: Path, tree: ast.Module) -> int:
    """Lines that are neither blank, nor a comment, nor part of a docstring."""
    lines = path.read_text("utf-8").splitlines()
    code = {n for n, line in enumerate(lines, 1) if line.strip() and line.strip()[0] != "#"}
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Expr) else None
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            code -= {*range(text.lineno, (text.end_lineno or text.lineno) + 1)}
    return len(code)


def imports_of(home: Path, trees: Mapping[Path, ast.Module]) -> Imports:
    """Which of these modules import which; `home` is the folder that the package lies in."""
    modules = {_name(path.relative_to(home)): tree for path, tree in trees.items()}
    packages = {_name(path.relative_to(home)) for path in trees if path.name == "__init__.py"}
    found: dict[str, set[str]] = {}
    for module, tree in modules.items():
        named = {each for node in ast.walk(tree) for each in _named(node, module, packages)}
        # `from a import b` may name the module a.b, or something in a.
        known = {each if each in modules else each.rpartition(".")[0] for each in named}
        found[module] = {each for each in known if each in modules} - {module}
    return found


def _name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _named(node: ast.AST, module: str, packages: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parts = module.split(".") if node.level else []
        # One dot is the package that the module is, or lies in.
        up = node.level - (module in packages)
        base = [*(parts[: len(parts) - up] if up else parts), *((node.module or "").split("."))]
        start = ".".join(filter(None, base))
        yield from (f"{start}.{alias.name}" for alias in node.names)


def circles_of(imports: Imports) -> list[int]:
    """The sizes of the circles, the largest first."""
    reached = {module: _reached(module, imports) for module in imports}
    circles = {
        frozenset(other for other in reached[module] if module in reached[other])
        for module in imports
    }
    return sorted((len(circle) for circle in circles if len(circle) > 1), reverse=True)


def _reached(start: str, imports: Imports) -> set[str]:
    """All that a module leads to; itself only where it comes back to itself."""
    seen: set[str] = set()
    waiting = [*imports[start]]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += imports[module]
    return seen


def _public(trees: Mapping[Path, ast.Module], folder: Path) -> object:
    """How many names the package's `__all__` lists, if it does so in so many words."""
    if folder.name == "kdcore":
        import kdcore

        return len(kdcore.__all__)
    tree = trees.get(folder / "__init__.py", ast.parse(""))
    for node in tree.body:
        if isinstance(node, ast.Assign) and "__all__" in map(ast.unparse, node.targets):
            return len(getattr(node.value, "elts", [])) or "not listed"
    return "not listed"


def main(arguments: Sequence[str]) -> None:
    """Print a table in Markdown."""
    rows = {name: row_of(Path(name).resolve()) for name in arguments}
    if not rows:
        engine = ROOT / "kdcore"
        rows = {
            "kdcore, without its verbs": row_of(engine, without="commands"),
            "kdcore": row_of(engine),
            "plugins": row_of(ROOT / "plugins"),
        }
    print(f"| | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(map(str, row))} |")


if __name__ == "__main__":
    main(sys.argv[1:])
