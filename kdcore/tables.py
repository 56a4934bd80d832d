"""The tables of a recipe: which there are, and what kind of component each names."""

from __future__ import annotations

from kdcore.locate import KeyPath
from kdcore.written import Written

TABLES = ("student", "tokenizer", "data", "teacher", "selection", "train")
LISTS = ("loss", "eval", "log")
IN_STAGE = ("seed", "trust_remote_code", *TABLES, *LISTS)
AT_TOP = ("name", "extends", "requires", "stage")

KINDS_OF_TABLES = {
    "tokenizer": "tokenizer",
    "data": "data",
    "teacher": "teacher",
    "selection": "selection",
    "loss": "loss",
    "eval": "eval",
    "log": "logger",
}
ENGINE_KEYS = {"loss": ("weight", "on"), "selection": ("scope",)}
"""Keys of a table that are not its component's."""


def in_stage(path: KeyPath) -> tuple[KeyPath, KeyPath]:
    """`stage.NAME` (nothing at the top level), and the path from there on."""
    return (path[:2], path[2:]) if path[:1] == ("stage",) else ((), path)


def shape(path: KeyPath) -> type | None:
    """Whether a key holds a list or a table of tables, where the engine knows it."""
    key = in_stage(path)[1]
    if key == ("student", "patch") or (len(key) == 1 and key[0] in LISTS):
        return list
    return dict if len(key) == 1 and key[0] in TABLES else None


def stages_of(root: Written) -> dict[str, Written]:
    """The stages of a recipe by name; none where it is a single run."""
    return root.table["stage"].table if "stage" in root.table else {}
