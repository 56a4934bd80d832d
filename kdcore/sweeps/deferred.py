"""Controls that depend on a finished twin: resolved once, then stored.

`kdcore.cli.control` does so on the machine that trains, after the runs that it measures.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from kdcore.api.component import component
from kdcore.api.loss import Loss
from kdcore.api.observers import Eval
from kdcore.errors import RunError
from kdcore.files import write_whole
from kdcore.recipe.overrides import Assignment
from kdcore.recipe.recipe import read_recipe
from kdcore.runs.environment import recorded
from kdcore.runs.reading.metrics import iter_metrics
from kdcore.sweeps import controls

if TYPE_CHECKING:
    from torch import Tensor

    from kdcore.plugin.manager import PluginManager


@dataclass(frozen=True)
class DeferredTask:
    """A control to resolve, in serialisable form."""

    control: str
    stage: str
    recipe: str  # the twin's
    made: str  # path for the control's recipe
    twin: str  # the twin's run folder
    plain: str  # run folder of the control it is compared with; "" for none
    plugins: tuple[str, ...]
    command: tuple[str, ...]  # runs the resulting recipe

    def write(self, path: Path) -> None:
        """Write it to a file."""
        write_whole(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> DeferredTask:
        """Read it from a file."""
        found = json.loads(path.read_text("utf-8"))
        found["plugins"], found["command"] = tuple(found["plugins"]), tuple(found["command"])
        return cls(**found)


def make_recipe(task: DeferredTask, host: PluginManager) -> None:
    """Measure, and write the control's recipe, unless it exists."""
    if Path(task.made).is_file():
        return
    recipe = read_recipe(task.recipe, host)
    twin = controls.Twin.of(recipe, task.stage)
    changes, said = _changes(task, twin, host)
    text = read_recipe(task.recipe, host, sets=changes).text
    write_whole(Path(task.made), f"# {task.control}: {said}\n{text}")


def _changes(
    task: DeferredTask, twin: controls.Twin, host: PluginManager
) -> tuple[list[Assignment], str]:
    folder = Path(task.twin)
    if task.control == "random-selection":
        share = kept_share(folder)
        return controls.with_share(twin, share), f"{folder.name} kept {share} of its tokens"
    if task.control == "more-steps":
        plain = Path(task.plain)
        cpu = all(map(counts_cpu_seconds, (folder, plain)))
        seconds, per = (training_seconds(each, cpu=cpu) for each in (folder, plain))
        steps = controls.steps_for(seconds, per, last_step(plain))
        unit = "CPU s" if cpu else "s"
        took = f"{folder.name} trained for {seconds:.1f} {unit}, {plain.name} for {per:.1f} {unit}"
        return controls.with_steps(twin, steps), f"{took}, so {steps} steps"
    entropy, ids = teacher_entropy(folder, host)
    smoothing = controls.smoothing_of(entropy, ids)
    said = f"the teacher's mean entropy is {entropy:.4f} nats over {ids} ids"
    return controls.with_smoothing(twin, smoothing), f"{said}, so the smoothing is {smoothing}"


def kept_share(folder: Path) -> float:
    """The share of tokens that a run's selection kept, from its metrics."""
    shares = [float(line["kept"] or 0) for line in iter_metrics(folder) if "kept" in line]
    if not shares:
        raise RunError(f"{folder} has no record of how many tokens it kept")
    return round(sum(shares) / len(shares), 6)


def counts_cpu_seconds(folder: Path) -> bool:
    """Whether a run used no GPU, and each of its lines has its CPU seconds."""
    about = recorded(folder / "env.json")
    if about is None or about.get("devices"):
        return False
    return all("cpu_seconds" in line for line in iter_metrics(folder))


def training_seconds(folder: Path, *, cpu: bool = False) -> float:
    """The seconds that a run trained, or CPU seconds, without evaluations, from its metrics."""
    seconds, tokens, at = 0.0, 0.0, 0.0
    for line in iter_metrics(folder):
        now, read = (float(line.get(key) or 0) for key in ("cpu_seconds", "tokens"))
        if rate := line.get("tokens_per_second"):
            seconds += now - at if cpu else (read - tokens) / float(rate)
            tokens = read
        at = now
    if not seconds:
        raise RunError(f"{folder} has no record of how long it trained")
    return seconds


def last_step(folder: Path) -> int:
    """The number of steps of a run."""
    return max(int(line["step"] or 0) for line in iter_metrics(folder))


@component
class _AsksTeacher(Eval):
    """An eval that makes a run's teacher load."""

    name = "teacher-entropy"
    needs_teacher: ClassVar[bool] = True


@component
class _Entropy(Loss):
    """The entropy of the teacher's distribution, independent of the student."""

    name = "entropy"

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """H(p) in nats [n]."""
        assert teacher is not None
        logs = teacher.log_softmax(-1)
        return -(logs.exp() * logs).sum(-1)


def teacher_entropy(folder: Path, host: PluginManager) -> tuple[float, int]:
    """The mean entropy of a finished run's teacher on its held-out rows, and its number of ids."""
    from kdcore.runs.open import begun, open_stage

    request = begun(folder, host)
    asking = replace(request, stage=replace(request.stage, evals=[_AsksTeacher()]))
    run = open_stage(asking)
    found = run.evaluate(run.rows("validation"), [_Entropy()], run.teacher)
    return found["entropy"] / found.get("known", found["tokens"]), run.vocabulary
