"""Recipes and runs by what a person types: a path, a name, a prefix. Needs no torch."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from kdcore.errors import UsageError


def find_recipe(name: str, among: Path | None = None) -> Path:
    """The file of a recipe: a path that exists, else a shipped recipe of that name.

    `among` is the folder that a relative path starts from; the current one by default.
    """
    path = (among or Path()) / name
    if os.path.exists(path) and not os.path.isdir(path):
        return path
    shipped = {recipe_name(each): each for each in shipped_recipes()}
    asked = name.removeprefix("./").removeprefix("recipes/").removesuffix(".toml")
    if asked in shipped:
        return shipped[asked]
    if os.path.isdir(path):
        raise UsageError(f"{name} is a folder; a recipe is a TOML file")
    beside = {each.stem: str(each) for each in path.parent.glob("*.toml")}
    near = [beside[stem] for stem in difflib.get_close_matches(path.stem, beside, 2)]
    near += difflib.get_close_matches(asked, shipped, 3, 0.5)
    hint = f"; the nearest are {', '.join(near)}" if near else "; type kdcore recipes for a list"
    raise UsageError(f"there is no recipe {name!r}{hint}")


def shipped_recipes() -> list[Path]:
    """The recipes that come with kdcore."""
    return sorted(_shipped_folder().rglob("*.toml"))


def recipe_name(path: Path) -> str:
    """What a shipped recipe is called: `rho_qwen`, `cpu/rho`."""
    return path.relative_to(_shipped_folder()).with_suffix("").as_posix()


def _shipped_folder() -> Path:
    """In a wheel they lie in the package; an editable install finds them beside it."""
    package = Path(__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def runs_in(out: Path) -> list[Path]:
    """The runs in a folder, the one that was busy last first."""
    folders = [path for path in out.iterdir() if _is_run(path)] if os.path.isdir(out) else []
    return sorted(folders, key=lambda path: (_last_change(path), path.name), reverse=True)


def find_run(name: str, out: Path) -> Path:
    """The folder of a run: a path, a folder's name, a unique prefix of one, or `last`."""
    if name and _is_run(Path(name)):
        return Path(name)
    runs = runs_in(out)
    if name == "last" and runs:
        return runs[0]
    exact = [run for run in runs if run.name == name]
    found = exact or [run for run in runs if name and run.name.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        names = _some(run.name for run in found)
        raise UsageError(f"several runs in {out} begin with {name!r}: {names}")
    raise UsageError(_no_run(name, out, [run.name for run in runs]))


def _no_run(name: str, out: Path, names: list[str]) -> str:
    if not names:
        return f"there is no run {name!r}: {out} holds no runs"
    if name and os.path.isdir(name):
        return f"{name} is no run: it has no {_RECIPE}"
    near = difflib.get_close_matches(name, names, 3, 0.3) or names
    return f"there is no run {name!r} in {out}; the nearest are {_some(near)}"


_RECIPE = "recipe.toml"


def _is_run(path: Path) -> bool:
    return os.path.isfile(path / _RECIPE)


def _last_change(run: Path) -> float:
    files = (run / _RECIPE, run / "metrics.jsonl")
    return max(file.stat().st_mtime for file in files if file.exists())


def _some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
