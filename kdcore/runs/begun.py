"""Runs that were begun by an older version go on, and are measured, as they were begun."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli

from kdcore.api.contracts import Data

if TYPE_CHECKING:
    from kdcore.api.contracts import Stage


def seed_begun_with(folder: Path) -> int | None:
    """The seed that drew the held-out rows of an older run; None where `train.eval_seed` does."""
    path = folder / "resolved.toml"
    if not path.is_file():
        return None
    try:
        table = tomli.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # damaged, or no recipe: others say so
        return None
    # Where the tokenizer has other data than the stage, the stage is a table of its own.
    tables: list[dict[str, Any]] = [table, *table.get("stage", {}).values()]
    if any("eval_seed" in each.get("train", {}) for each in tables):
        return None
    return int(next((each["seed"] for each in reversed(tables) if "seed" in each), 0))


def as_begun(stage: Stage, folder: Path) -> Stage:
    """The stage as the run in the folder has it so far.

    Older runs have held-out rows drawn by their seed, documents without a bos, and tokens of what
    documents spelled out.
    """
    typed = stage.table.get("train")
    seed = seed_begun_with(folder)
    if seed is None or (isinstance(typed, dict) and "eval_seed" in typed):
        return stage
    for component in stage.components():
        if isinstance(component, Data):
            component.bos, component.special_tokens = False, "parse"
    options: Any = stage.train  # a dataclass, which mypy cannot see
    return replace(stage, train=replace(options, eval_seed=seed))
