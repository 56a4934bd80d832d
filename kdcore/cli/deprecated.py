"""Deprecated functions of kdcore 0.1 that open runs, until 1.0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcore.runs.open import begun, in_students_place, not_begun, open_stage

if TYPE_CHECKING:
    from kdcore.api.run import Stage
    from kdcore.plugin.manager import PluginManager
    from kdcore.recipe.recipe import Recipe
    from kdcore.training.run_state import RunState


def open_run(folder: Path, host: PluginManager, **options: Any) -> RunState:
    """A run by its folder, with its weights."""
    return open_stage(begun(folder, host, **options))


def open_model(
    model: str, stage: Stage, folder: Path, evals: Sequence[str] | None = None
) -> RunState:
    """A model in the role of a stage's student."""
    return open_stage(in_students_place(model, stage, folder, evals))


@contextmanager
def open_unstarted(recipe: Recipe, name: str, out: Path) -> Iterator[RunState]:
    """A stage without weights, in a temporary folder."""
    with not_begun(recipe, name, out) as request:
        yield open_stage(request, upto="ids")
