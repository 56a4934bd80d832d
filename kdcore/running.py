"""What `kdcore run` does: a recipe, a product of recipes, or a run to go on with."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdcore.elsewhere import said_of
from kdcore.errors import KdcoreError, RunError
from kdcore.finding import find_run
from kdcore.recipe import expand, read_recipe
from kdcore.stages import Options, run_recipe

if TYPE_CHECKING:
    from kdcore.plugins import Host
    from kdcore.recipe import Recipe

_log = logging.getLogger("kdcore")


@dataclass(frozen=True)
class Asked:
    """The arguments of `kdcore run`."""

    recipe: str
    out: Path
    sets: tuple[str, ...] = ()
    each: tuple[str, ...] = ()
    logs: tuple[str, ...] = ()
    stage: str | None = None
    fresh: bool = False
    accept: frozenset[str] = frozenset()


def run_all(asked: Asked, host: Host) -> list[Path]:
    """Everything that was asked for; each run's folder, once."""
    from accelerate import PartialState

    folders = _runs(asked, host)
    if PartialState().is_main_process:
        host.emit("kdcore_runs_end", folders=folders)
    return folders


def _runs(asked: Asked, host: Host) -> list[Path]:
    folder = _folder(asked)
    options = Options(asked.out, asked.fresh, asked.accept, asked.stage, folder)
    if folder is not None:
        name = str(folder / "resolved.toml")
        recipe = read_recipe(name, host, sets=asked.sets, logs=asked.logs)
        _tell_what_differs(recipe, host)
        return run_recipe(recipe, host, options)
    # Every recipe of the product is checked before the first one runs.
    recipes = [
        (label, read_recipe(asked.recipe, host, sets=sets, logs=asked.logs))
        for label, sets in expand(asked.sets, asked.each)
    ]
    return _run_each(recipes, host, options)


def _folder(asked: Asked) -> Path | None:
    """The run folder that is meant, where a recipe of that name is not."""
    from kdcore.finding import find_recipe

    if os.path.isdir(asked.recipe):
        return find_run(asked.recipe, asked.out)
    try:
        find_recipe(asked.recipe)
    except KdcoreError as unknown_recipe:
        try:
            return find_run(asked.recipe, asked.out)
        except KdcoreError:
            raise unknown_recipe from None
    return None


def _tell_what_differs(recipe: Recipe, host: Host) -> None:
    """Where the recipe is another run's resolved.toml, that run's env.json lies beside it."""
    said = said_of(recipe.path.parent, host)
    if said:
        _log.info(said)


def _run_each(recipes: list[tuple[str, Recipe]], host: Host, options: Options) -> list[Path]:
    folders: dict[Path, None] = {}
    failures: list[str] = []
    for label, recipe in recipes:
        for note in recipe.notes:
            _log.info(note)
        _tell_what_differs(recipe, host)
        if label:
            _log.info("%s: %s", recipe.name, label)
        try:
            folders.update(dict.fromkeys(run_recipe(recipe, host, options)))
        except RunError as error:
            if len(recipes) == 1:
                raise
            failures.append(f"{label}: {error}")
            _log.warning("%s failed: %s", label, error)
    if failures:
        raise RunError(
            f"{len(failures)} of {len(recipes)} failed; the same command tries these again:\n"
            + "\n".join(failures)
        )
    return list(folders)
