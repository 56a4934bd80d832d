"""Files of a sweep: the recipe of each task, submitted jobs, and sweep.json.

All but sweep.json is in `OUT/.sweep/NAME`, where the same command finds it again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcore.errors import UsageError
from kdcore.files import write_whole
from kdcore.recipe.recipe import read_recipe
from kdcore.runs.open import run_folder

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager
    from kdcore.recipe.recipe import Recipe
    from kdcore.sweeps.graph import Task
    from kdcore.sweeps.points import Point

_log = logging.getLogger("kdcore")
RECORD = "sweep.json"
_JOBS = "jobs.json"


class Store:
    """The files of one sweep."""

    def __init__(self, out: Path, name: str, host: PluginManager) -> None:
        self.out, self.host = out, host
        self.folder = out / ".sweep" / name
        self._known: dict[str, Path] = {}  # folders of deferred tasks
        self._read: dict[str, Recipe] = {}  # saved recipes, by their text

    def recipe_of(self, task: Task) -> Path:
        """The recipe file from which the task runs."""
        return self.folder / f"{task.name}.toml"

    def log_of(self, task: Task) -> Path:
        """The file for the task's output."""
        return self.folder / f"{task.name}.log"

    def run_of(self, task: Task) -> Path | None:
        """The run folder of a task, which may not exist; None if it is not known yet."""
        if not task.waits:
            return task.folder(self.out)
        path = self.recipe_of(task)
        if task.key not in self._known and path.is_file():
            recipe = read_recipe(str(path), self.host)
            self._known[task.key] = run_folder(recipe, task.stage, self.out)
        return self._known.get(task.key)

    def keep_recipe(self, task: Task) -> None:
        """Save a task's recipe as it is now: the user's file may change meanwhile."""
        path = self.twin_of(task) if task.waits else self.recipe_of(task)
        text = task.point.recipe.text
        write_whole(path, text)
        if text not in self._read:  # stages of a point share it
            self._read[text] = read_recipe(str(path), self.host)
        if self._read[text].identity(task.stage) != task.point.recipe.identity(task.stage):
            raise UsageError(
                f"{task.point.label}: a value that replaces a whole table cannot be "
                "swept; vary its keys one by one"
            )

    def twin_of(self, task: Task) -> Path:
        """The recipe from which a deferred task's is derived."""
        return self.folder / f"{task.name}.twin.toml"

    def jobs(self) -> dict[str, str]:
        """Handles by key, of jobs that may outlive the command that submitted them."""
        path = self.folder / _JOBS
        try:
            return dict(json.loads(path.read_text("utf-8")))
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError):
            _log.warning("%s is damaged: jobs submitted before are not known, and may run", path)
            return {}

    def keep_jobs(self, executor: str, handles: Mapping[str, str]) -> None:
        """Save the handles of an executor's jobs."""
        start = f"{executor}/"
        others = {key: each for key, each in self.jobs().items() if not key.startswith(start)}
        kept = others | {f"{start}{key}": handle for key, handle in handles.items()}
        write_whole(self.folder / _JOBS, json.dumps(kept, indent=1) + "\n")

    def jobs_of(self, executor: str) -> dict[str, str]:
        """Handles by key, for one executor."""
        start = f"{executor}/"
        jobs = self.jobs().items()
        return {key.removeprefix(start): each for key, each in jobs if key.startswith(start)}

    def record(self, recipe: str, tasks: Sequence[Task]) -> Path:
        """Write which run is which point; keeps those of earlier sweeps in this folder."""
        path = self.out / RECORD
        mine = [each for task in tasks for each in self._points(task)]
        known = {_what(each) for each in mine}
        others = [each for each in _earlier(path) if _what(each) not in known]
        here = [each for each in others if (self.out / str(each.get("run"))).is_dir()]
        text = json.dumps({"recipe": recipe, "points": [*here, *mine]}, indent=1, default=str)
        write_whole(path, text + "\n")
        return path

    def _points(self, task: Task) -> list[dict[str, Any]]:
        folder = self.run_of(task)
        if folder is None or not folder.is_dir():
            return []
        ended = (point for point in task.points if task.stage in point.ends)
        # Controls of several points may be the same run if they lack what varies.
        each = {(point.control, point.control or point.label): point for point in ended}
        return [_point(task, point, folder) for point in each.values()]


def _point(task: Task, point: Point, folder: Path) -> dict[str, Any]:
    stage = f" {task.stage}" if len(point.ends) > 1 else ""
    return {
        "label": point.label + stage,
        "sets": point.values,
        "control": point.control,
        "seed": point.seed,
        "stage": task.stage,
        "identity": folder.name.rpartition("-")[2] if task.waits else task.key,
        "run": folder.name,
        "twin": _twin(task, point, folder.parent).name if task.waits else None,
    }


def _twin(task: Task, point: Point, out: Path) -> Path:
    """The run that a deferred control's value is measured on."""
    assert point.twin is not None
    return run_folder(point.twin.recipe, task.stage, out)


def _what(point: Mapping[str, Any]) -> tuple[object, ...]:
    """A run, and what a sweep says of it: a run may be a point of several sweeps."""
    return tuple(point.get(key) for key in ("run", "label", "control"))


def _earlier(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(path.read_text("utf-8"))["points"]
        return [each for each in list(found) if isinstance(each, dict)]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        _log.warning(
            "%s was damaged, and is now %s: rerun the commands of earlier sweeps in this folder, "
            "which only adds their runs to it",
            path,
            aside.name,
        )
        return []
