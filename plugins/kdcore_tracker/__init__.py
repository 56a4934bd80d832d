"""Live logging to an experiment tracker: TensorBoard, trackio or Weights & Biases."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from kdcore import Logger, Record, Run, component, hookimpl, metrics
from kdcore_tracker.logged import LoggedSteps
from kdcore_tracker.settings import settings_of

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

__all__ = ["Tracker"]

_PIP = {
    "tensorboard": '"kdcore[trackers]"',
    "trackio": '"kdcore[trackers]"',
    "wandb": "wandb",
}


@component
class Tracker(Logger):
    """Log what metrics.jsonl holds to a tracker, under the same names, with the recipe as config.

    TensorBoard's files are in the run folder: `tensorboard --logdir runs` shows all runs. trackio
    and Weights & Biases (wandb) log to `project`, with the run folder's name as the run's name.
    """

    name = "tracker"
    to: Literal["tensorboard", "trackio", "wandb"] = "tensorboard"
    project: str = "kdcore"

    def __post_init__(self) -> None:
        self._tracker: GeneralTracker | None = None

    def faults(self, recipe: object) -> Iterator[str]:
        """Report a missing library."""
        found = find_spec(self.to)
        # An empty namespace package counts as missing: wandb writes such a folder where it runs.
        if found is None or found.origin is None:
            yield f"the logger 'tracker' needs {self.to}: pip install {_PIP[self.to]}"

    @hookimpl
    def kdcore_run_start(self, run: Run) -> None:
        """Start a tracker run, or resume the run's own."""
        if not run.main:
            return
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        self._logged = LoggedSteps(run.folder, f"{self.to} {self.project}")
        tracker = LOGGER_TYPE_TO_CLASS[self.to](**self._arguments(run))
        with redirect_stdout(sys.stderr):
            tracker.start()
            # TensorBoard makes a run of each config; trackio forgets the config of a resumed run.
            if self.to != "tensorboard" or not self._logged.begun:
                tracker.store_init_configuration(settings_of(run.folder))
        self._logged.begin()
        self._tracker = tracker

    def _arguments(self, run: Run) -> Mapping[str, Any]:
        """The tracker's arguments. `run_name` is accelerate's name for a tracker's project."""
        if self.to == "tensorboard":
            # Steps after the checkpoint, left by a crash, are hidden.
            purge = {"purge_step": run.step + 1 if run.step else 0}
            return {"run_name": "tensorboard", "logging_dir": run.folder, **purge}
        about = {"run_name": self.project, "name": run.folder.name}
        if self.to == "trackio":
            return {**about, "resume": "allow" if self._logged.begun else "never"}
        return {**about, "id": self._logged.id, "resume": "allow", "dir": str(run.folder)}

    @hookimpl
    def kdcore_log(self, record: Record) -> None:
        """Log the training numbers."""
        self._log_line("log", record.step, metrics.training_line(record))

    @hookimpl
    def kdcore_scores(self, step: int, scores: Mapping[str, float | str]) -> None:
        """Log the scores, texts included."""
        self._log_line("scores", step, metrics.evaluation_line(step, scores))

    def _log_line(self, kind: str, step: int, line: metrics.Line) -> None:
        if self._tracker is None or (self.to != "tensorboard" and self._logged.knows(kind, step)):
            return
        with self._forgotten():
            values = {key: value for key, value in line.items() if key != "step"}
            self._tracker.log(values, step=step)
            self._logged.note(kind, step)

    @contextmanager
    def _forgotten(self) -> Iterator[None]:
        """Disable the tracker after its first error."""
        try:
            yield
        except BaseException:
            self._tracker = None
            raise

    @hookimpl
    def kdcore_run_end(self) -> None:
        """Finish the tracker's run."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            with redirect_stdout(sys.stderr):
                tracker.finish()


@hookimpl
def kdcore_loggers() -> Sequence[type[Logger]]:
    """The logger `tracker`."""
    return [Tracker]
