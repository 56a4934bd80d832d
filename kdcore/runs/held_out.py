"""The held-out rows of runs that were begun before these had a seed of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli

if TYPE_CHECKING:
    from kdcore.api.contracts import Stage


def seed_begun_with(folder: Path) -> int | None:
    """The seed that drew the held-out rows of an older run; None where `train.eval_seed` does."""
    path = folder / "resolved.toml"
    if not path.is_file():
        return None
    table = tomli.loads(path.read_text(encoding="utf-8"))
    # Where the tokenizer has other data than the stage, the stage is a table of its own.
    tables: list[dict[str, Any]] = [table, *table.get("stage", {}).values()]
    if any("eval_seed" in each.get("train", {}) for each in tables):
        return None
    return int(next((each["seed"] for each in reversed(tables) if "seed" in each), 0))


def as_begun(stage: Stage, folder: Path) -> Stage:
    """The stage with the held-out rows that the run in the folder has measured so far."""
    typed = stage.table.get("train")
    seed = seed_begun_with(folder)
    if seed is None or (isinstance(typed, dict) and "eval_seed" in typed):
        return stage
    options: Any = stage.train  # a dataclass, which mypy cannot see
    return replace(stage, train=replace(options, eval_seed=seed))
