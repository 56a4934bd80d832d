"""Settings of runs that an older version started, which resume and evaluate unchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli

from kdcore.api.data import Data

if TYPE_CHECKING:
    from kdcore.api.run import Stage


def seed_begun_with(folder: Path) -> int | None:
    """The seed of an older run's held-out rows; None if `train.eval_seed` determines them."""
    path = folder / "resolved.toml"
    if not path.is_file():
        return None
    try:
        table = tomli.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # damaged, or not a recipe: reported elsewhere
        return None
    # If the tokenizer has other data than the stage, the stage is a table of its own.
    tables: list[dict[str, Any]] = [table, *table.get("stage", {}).values()]
    if any("eval_seed" in each.get("train", {}) for each in tables):
        return None
    return int(next((each["seed"] for each in reversed(tables) if "seed" in each), 0))


def as_begun(stage: Stage, folder: Path) -> Stage:
    """The stage with the settings that the run in the folder started with.

    Older runs drew held-out rows by their seed, had documents without BOS, and tokenised special
    tokens that documents spell out.
    """
    typed = stage.table.get("train")
    seed = seed_begun_with(folder)
    if seed is None or (isinstance(typed, dict) and "eval_seed" in typed):
        return stage
    for component in stage.components():
        if isinstance(component, Data):
            component.bos, component.special_tokens = False, "parse"
    options: Any = stage.train  # a dataclass, unknown to mypy
    return replace(stage, train=replace(options, eval_seed=seed))
