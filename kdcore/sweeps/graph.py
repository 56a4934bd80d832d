"""The task graph of a sweep: each distinct stage of all points once, by its identity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kdcore.api.options import option_values
from kdcore.api.train_options import ResourceOptions
from kdcore.runs.folder import finished
from kdcore.runs.open import run_folder

if TYPE_CHECKING:
    from kdcore.sweeps.points import Point


@dataclass(eq=False)
class Task:
    """A stage that runs once, however many points need it."""

    key: str  # its identity; `CONTROL-of-IDENTITY` for a deferred control
    point: Point  # the first point that needs it
    stage: str
    needs: tuple[str, ...]  # keys of tasks
    points: list[Point] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its run's name and its key."""
        return f"{self.point.recipe.run_name(self.stage)}-{self.key}"

    @property
    def waits(self) -> bool:
        """Whether its recipe depends on finished tasks."""
        return self.point.waits

    @property
    def resources(self) -> ResourceOptions:
        """Its resource requests."""
        return self.point.recipe.checked[self.stage].resources or ResourceOptions()

    def folder(self, out: Path) -> Path:
        """Its run folder, which may not exist; not available while deferred."""
        return run_folder(self.point.recipe, self.stage, out)


def tasks_of(points: Sequence[Point]) -> dict[str, Task]:
    """All tasks by key, in topological order."""
    found: dict[str, Task] = {}
    for point in points:
        for task in _of_point(point):
            found.setdefault(task.key, task).points.append(point)
    return found


def key_of(point: Point, stage: str) -> str:
    """The key of a point's stage."""
    identity = point.recipe.identity(stage)
    return f"{point.control}-of-{identity}" if point.waits else identity


def _of_point(point: Point) -> Iterator[Task]:
    if point.waits:
        assert point.twin is not None
        stage = point.ends[-1]
        waited = [point.twin, *([point.plain] if point.plain is not None else [])]
        needs = tuple(key_of(each, stage) for each in waited)
        yield Task(key_of(point, stage), point, stage, needs)
        return
    by_name = {each.name: each for each in point.recipe.stages}
    for name in point.stages:
        needs = tuple(point.recipe.identity(need) for need in by_name[name].needs)
        yield Task(point.recipe.identity(name), point, name, needs)


def node_of(task: Task, out: Path, recipe: str) -> dict[str, object]:
    """A node for any scheduler: command, dependencies, resources."""
    command = ["kdcore", "run", recipe, *(["--stage", task.stage] if task.stage else [])]
    for each in task.point.sets:
        command += ["--set", each]
    asked = option_values(task.resources)
    return {
        "key": task.key,
        "identity": None if task.waits else task.key,
        "name": task.point.recipe.run_name(task.stage),
        "recipe": recipe,
        "stage": task.stage,
        "sets": list(task.point.sets),
        "needs": list(task.needs),
        "resources": {key: value for key, value in asked.items() if value is not None},
        "control": task.point.control if task.waits else None,
        "points": [point.label for point in task.points],
        "command": None if task.waits else [*command, "--out", str(out)],
        "finished": not task.waits and finished(task.folder(out)),
    }
