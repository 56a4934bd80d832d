"""Begin a recipe or a plugin of your own."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import tomli
import typer

from kdcore.commands.plugin_template import check_name, files_of
from kdcore.errors import UsageError
from kdcore.recipe.files import find_recipe, recipe_name

new = typer.Typer(
    help="Begin a recipe or a plugin of your own.", no_args_is_help=True, add_completion=False
)


@new.command()
def recipe(
    source: Annotated[str, typer.Argument(metavar="FROM", help="A shipped recipe or a file.")],
    target: Annotated[
        Path | None, typer.Argument(metavar="TO", help="The new file; beside you by default.")
    ] = None,
) -> None:
    """Copy a recipe, comments and all, to change it."""
    path = find_recipe(source)
    target = (target or Path(path.name)).with_suffix(".toml")
    if os.path.exists(target):
        raise UsageError(f"{target} exists already: kdcore new recipe {source} OTHER_NAME")
    target.parent.mkdir(parents=True, exist_ok=True)
    _write_new(target, _same_base(path.read_text(encoding="utf-8"), path, target))
    print(f"{target}\nkdcore check {target}\nkdcore run {target}")


def _same_base(text: str, source: Path, target: Path) -> str:
    """The text, with an `extends` that means the same file from the new place."""
    extends = tomli.loads(text).get("extends")
    if not isinstance(extends, str):
        return text
    base = find_recipe(extends, source.parent).resolve()
    beside = os.path.relpath(base, target.parent.resolve())
    ways = (extends, *_shipped_name(base), Path(beside).as_posix())
    said = next(way for way in ways if _finds(way, target.parent, base))
    return re.sub(r"(?m)^extends\s*=.*$", lambda _: f'extends = "{said}"', text, count=1)


def _shipped_name(base: Path) -> tuple[str, ...]:
    try:
        return (recipe_name(base),)
    except ValueError:  # not a shipped one
        return ()


def _finds(name: str, folder: Path, base: Path) -> bool:
    try:
        return find_recipe(name, folder).resolve() == base
    except UsageError:
        return False


@new.command()
def plugin(
    name: Annotated[str, typer.Argument(help="Of the package, such as kdcore-mine.")],
) -> None:
    """Make a package with a loss of your own: module, test, README and pyproject.toml."""
    check_name(name)
    folder = Path(name)
    if os.path.exists(folder):
        raise UsageError(f"{folder} exists already: choose another name")
    for path, text in files_of(name).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        _write_new(folder / path, text)
        print(folder / path)
    print(f"pip install -e ./{folder}")


def _write_new(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8") as file:  # "x": never over anything
        file.write(text)
