"""Executors start the jobs of a sweep and report their states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from kdcore.api.component import Component


@dataclass(frozen=True)
class Job:
    """One command to run on some machine: one stage of a sweep."""

    name: str  # unique in its sweep, such as "fox.student-1a2b3c4d"
    command: Sequence[str]  # run in the current folder and environment; exit status 0 is success
    log: Path  # the file for its output
    folder: Path  # the sweep folder, where executors may keep files
    gpus: int = 0  # 0: unspecified, or none
    cpus: int = 0  # 0: unspecified
    memory: str = ""  # such as "32GB"
    hours: float = 0.0  # 0: unspecified
    after: Sequence[str] = field(default_factory=tuple)  # handles of jobs that must succeed first


@dataclass(frozen=True)
class JobState:
    """The state of a job."""

    phase: Literal["queued", "running", "ended"]
    code: int | None = None  # the exit status, where known
    reason: str = ""  # why it waits or ended, in one sentence


States = Mapping[str, JobState]
"""States by handle."""


class Executor(Component):
    """Where the runs of a sweep are started: `kdcore sweep --on NAME`."""

    component_kind: ClassVar[str] = "executor"
    argument: ClassVar[str] = ""  # the option that `--on NAME:VALUE` gives
    outlives: ClassVar[bool] = False  # True: jobs continue after the command that started them ends
    chains: ClassVar[bool] = False  # True: `start` accepts jobs before those in `after` have ended
    seconds: ClassVar[float] = 1.0  # polling interval

    def start(self, job: Job) -> str | None:
        """Start or submit a job. Returns its handle, or None if there is no room yet: retried.

        Where jobs outlive the command, the handle must suffice for `states` and `cancel` in another
        process. Raises RunError with the scheduler's message if the job is rejected.
        """
        raise NotImplementedError

    def states(self, handles: Sequence[str]) -> Mapping[str, JobState]:
        """The state of each job. A job that is missing counts as lost, and is started again."""
        raise NotImplementedError

    def cancel(self, handles: Sequence[str]) -> None:
        """Terminate these jobs with SIGTERM, so that they write checkpoints. Returns when they have
        ended, or immediately where jobs outlive the command.
        """
        raise NotImplementedError
