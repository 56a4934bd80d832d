"""Resuming a run with a changed recipe, if every change is accepted by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import tomli

from kdcore.api.train_options import DURATIONS
from kdcore.checksums import keep
from kdcore.errors import RecipeError, UsageError
from kdcore.files import write_whole
from kdcore.recipe.elsewhere import without_elsewhere
from kdcore.recipe.merge import identity_fields
from kdcore.recipe.node import Node, Source
from kdcore.recipe.recipe import read_recipe
from kdcore.runs.folder import CHECKPOINTS, FINAL, MARK, RESOLVED, finished, locked
from kdcore.training.checkpoints.folders import last_step

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager


Changes = Mapping[str, tuple[object, object]]
"""By key, as in `--set`: old and new value; None if absent."""


def find_extendable(
    out: Path, run_name: str, resolved: str, host: PluginManager, accepted: frozenset[str]
) -> Path | None:
    """The run of this name that a recipe can resume, given the accepted keys."""
    if not any("." in name for name in accepted):
        return None
    found = None
    for folder in sorted(out.glob(f"{run_name}-*")):
        try:
            changes = recipe_changes(folder, resolved, host)
        except (RecipeError, OSError):
            continue
        if not refused(changes, accepted) and (changes or (folder / MARK).exists()):
            found = folder
    return found


def recipe_changes(folder: Path, resolved: str, host: PluginManager) -> Changes:
    """The relevant differences between a recipe and the run in the folder."""
    recipe = read_recipe(str(folder / "resolved.toml"), host)
    began = recipe.resolved(recipe.build(recipe.stages[0].name))
    before, now = _counted(began, host), _counted(resolved, host)
    keys = [*before, *(key for key in now if key not in before)]
    both = {key: (before.get(key), now.get(key)) for key in keys}
    return {key: (was, is_) for key, (was, is_) in both.items() if was != is_}


def refused(changes: Changes, accepted: frozenset[str]) -> list[str]:
    """The keys that were not accepted; one word for the length of a run accepts all of them."""
    durations = {f"train.{name}" for name in DURATIONS}
    allowed = accepted | durations if accepted & durations else accepted
    return [key for key in changes if key not in allowed]


def adopt_recipe(
    folder: Path, resolved: str, host: PluginManager, accepted: frozenset[str]
) -> None:
    """Switch the run in the folder to this recipe, if all changes are accepted.

    Marks the folder: the run no longer matches the recipe identity in its name.
    """
    changes = recipe_changes(folder, resolved, host)
    if names := refused(changes, accepted):
        said = "; ".join(
            f"{name}: was {_said(changes[name][0])}, is {_said(changes[name][1])}" for name in names
        )
        raise UsageError(
            f"{folder} was begun with another recipe: {said}. Type --accept {','.join(names)} to "
            "resume it anyway, or give the recipe's name for a run of its own"
        )
    if not changes:
        return
    steps, at = changes.get("train.steps", (None, None))[1], last_step(folder / CHECKPOINTS)
    if isinstance(steps, int) and steps < at:
        raise UsageError(
            f"{folder} is at step {at} already, and would end as a run of {steps} steps: type "
            f"--set train.steps={at} or more, or give the recipe's name for a run of its own"
        )
    with locked(folder):
        write_whole(folder / MARK, json.dumps(changes, indent=1, default=str) + "\n")
        if finished(folder):
            # The run resumes from the weights of its last checkpoint.
            (folder / FINAL).rename(folder / f".{FINAL}.partial")
        write_whole(folder / RESOLVED, resolved)
        keep(folder, RESOLVED, folder / RESOLVED)


def _counted(resolved: str, host: PluginManager) -> dict[str, object]:
    table = tomli.loads(resolved)
    for stage in table.pop("stage", {}).values():
        table |= stage
    counted = without_elsewhere(Node.of(table, Source(RESOLVED)), host).plain_table()
    return dict(_flat(identity_fields(counted), ""))


def _flat(value: object, key: str) -> Iterator[tuple[str, object]]:
    """Values by key as in `--set`: list items are counted from 1."""
    if isinstance(value, dict):
        items = [(str(name), each) for name, each in value.items()]
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        items = [(str(n), each) for n, each in enumerate(value, 1)]
    else:
        yield key, value
        return
    for name, each in items:
        yield from _flat(each, f"{key}.{name}" if key else name)


def _said(value: object) -> str:
    return "nothing" if value is None else json.dumps(value, default=str)
