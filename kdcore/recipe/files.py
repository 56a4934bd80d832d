"""Recipe files: reading, `extends`, and shipped recipes."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import tomli

from kdcore.errors import Diagnostic, RecipeError, UsageError
from kdcore.recipe.merge import merge_recipes
from kdcore.recipe.node import Node, Source

_EMPTY = "a recipe needs [student], [data], [[loss]] and [train]"
_NEW = "kdcore new recipe {} --teacher MODEL --student MODEL --data FILE"


@dataclass(frozen=True)
class MergedRecipe:
    """A recipe file, merged over the files that it extends."""

    root: Node  # without `extends` and `requires`; `name` and `sweep` are the first file's
    requires: list[Node]  # of all files
    text: str  # the first file's
    alone: bool  # it extends nothing


def read_files(path: Path, name: str) -> MergedRecipe:
    """Follow `extends` to the end and merge. `name` is the path as typed."""
    text = _read(path, name)
    root = _parse(text, name)
    seen, requires = [path.resolve()], [*_requires(root)]
    layers = [root]
    while "extends" in layers[-1].table:
        extends = layers[-1].table.pop("extends")
        path, name = _extended(extends, path, name)
        if path.resolve() in seen:
            raise RecipeError([_circle(extends, layers, name)])
        seen.append(path.resolve())
        layer = _parse(_read(path, name), name)
        for own in ("name", "sweep"):
            layer.table.pop(own, None)
        requires += _requires(layer)
        layers.append(layer)
    merged = layers.pop()
    for layer in reversed(layers):
        merged = merge_recipes(merged, layer)
    return MergedRecipe(merged, requires, text, alone=len(seen) == 1)


def _requires(layer: Node) -> list[Node]:
    requires = layer.table.pop("requires", None)
    if requires is None:
        return []
    if not requires.is_list:
        raise RecipeError([requires.error('requires should be a list: ["kdcore>=0.1"]')])
    return requires.items


def _circle(extends: Node, layers: list[Node], name: str) -> Diagnostic:
    chain = " extends ".join([*(layer.source.name for layer in layers), name])
    return extends.error(f"extends is circular: {chain}", "leave extends out of one of them")


def _extended(extends: Node, path: Path, name: str) -> tuple[Path, str]:
    """The file that another one extends, and its name as a user would type it."""
    if not isinstance(extends.value, str):
        raise RecipeError([extends.error('extends should be one path: "other.toml"')])
    try:
        found = find_recipe(extends.value, path.parent)
    except UsageError as error:
        raise RecipeError([extends.error(str(error))]) from None
    if not found.is_file():  # reading a device would never end
        raise RecipeError([extends.error(f"{extends.value!r} is not a file")])
    next_to_it = os.path.normpath(Path(name).parent / extends.value)
    return found, next_to_it if os.path.exists(next_to_it) else str(found)


def _read(path: Path, name: str) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecipeError([Diagnostic(f"cannot be read: {error.strerror}", name)]) from None
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        said = "this is not UTF-8 text, so not a recipe"
        raise RecipeError([Diagnostic(said, name, line, column, hint="save it as UTF-8")]) from None


def _parse(text: str, name: str) -> Node:
    source = Source(name, text)
    try:
        table = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise RecipeError([_not_toml(error, name)]) from None
    except ValueError:  # from Python, for an integer
        raise RecipeError([Diagnostic("a whole number has more than 4,300 digits", name)]) from None
    except RecursionError:
        raise RecipeError([Diagnostic("lists or tables are nested too deeply", name)]) from None
    if not table:
        hint = "begin from a shipped one: kdcore new recipe"
        raise RecipeError([Diagnostic(f"the recipe is empty: {_EMPTY}", name, hint=hint)])
    return Node.of(table, source)


def _not_toml(error: tomli.TOMLDecodeError, name: str) -> Diagnostic:
    shown = (error.doc.split("\n"))[error.lineno - 1].replace("\t", " ")
    ways = (way for said, form, way in _WAYS if said in error.msg and re.match(form, shown))
    hint = next(ways, "")
    said = f"this is not TOML: {error.msg[0].lower()}{error.msg[1:]}"
    return Diagnostic(said, name, error.lineno, error.colno, shown, hint)


_WAYS = (
    ("Cannot declare", "", "a table is written once; [[name]] adds an item to a list of tables"),
    ("Cannot overwrite a value", "", "a key is given once"),
    ("Invalid value", r".*[\u2018-\u201f\xab\xbb]", 'write straight quotes: use = "kl"'),
    ("Invalid value", r".*=\s*(True|False)\b", "write true and false in small letters"),
    ("Invalid value", "", 'a text needs quotes: use = "kl"'),
    ("Illegal character", "", 'a text ends with the quote that it begins with: use = "kl"'),
    ("Expected '='", r"\s*[\w-]+\s*:", "write key = value, and a table as [train]"),
    ("Expected '='", "", "a key is one word: lr = 1e-3"),
    ("Expected newline", r".*=\s*[\d.]+,\d", "numbers have a point: 0.001"),
    ("Expected newline", "", "write one key a line, and nothing after its value"),
    ("Invalid statement", r"\s*\{", "this looks like JSON: write [train], and below it lr = 1e-3"),
)
"""What the parser says, a pattern of the line, and what to write instead."""


def find_recipe(name: str, among: Path | None = None) -> Path:
    """The file of a recipe: an existing path, else a shipped recipe of that name.

    `among` is the folder for relative paths, by default the current one.
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
    is_file = name.endswith(".toml")
    neighbours = {each.stem: str(each) for each in path.parent.glob("*.toml")}
    near = [neighbours[stem] for stem in difflib.get_close_matches(path.stem, neighbours, 2)]
    near += difflib.get_close_matches(asked, shipped, 3, 0.75 if is_file else 0.5)
    hint = f"{_NEW.format(name)} writes one" if is_file else "kdcore recipes lists them"
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    raise UsageError(f"there is no recipe {name!r}; {hint}")


def shipped_recipes() -> list[Path]:
    """The recipes shipped with kdcore."""
    return sorted(_shipped_folder().rglob("*.toml"))


def recipe_name(path: Path) -> str:
    """The name of a shipped recipe: `rho_qwen`, `cpu/rho`."""
    return path.relative_to(_shipped_folder()).with_suffix("").as_posix()


def _shipped_folder() -> Path:
    """In a wheel inside the package; in an editable install next to it."""
    package = Path(__file__).parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"
