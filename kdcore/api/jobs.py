"""Executors start the jobs of a sweep and say what became of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from kdcore.api.component import Component


@dataclass(frozen=True)
class Job:
    """One command to run on some machine: a stage of a sweep."""

    name: str  # such as "fox.student-1a2b3c4d"; unique in its sweep
    command: Sequence[str]  # to run in this folder, with this environment; 0: it is done
    log: Path  # the file for what it prints
    folder: Path  # of the sweep: where an executor may keep files of its own
    gpus: int = 0  # 0: not said, or none
    cpus: int = 0  # 0: not said
    memory: str = ""  # such as "32GB"
    hours: float = 0.0  # 0: not said
    after: Sequence[str] = field(default_factory=tuple)  # handles of jobs that must end well first


@dataclass(frozen=True)
class JobState:
    """What became of a job."""

    phase: Literal["queued", "running", "ended"]
    code: int | None = None  # what the command ended with, where it is known
    reason: str = ""  # why it waits, or ended, in one sentence


States = Mapping[str, JobState]
"""By handle."""


class Executor(Component):
    """Where the runs of a sweep are started: `kdcore sweep --on NAME`."""

    component_kind: ClassVar[str] = "executor"
    argument: ClassVar[str] = ""  # the option that `--on NAME:VALUE` gives
    outlives: ClassVar[bool] = False  # True: jobs go on without the command that started them
    chains: ClassVar[bool] = False  # True: `start` takes jobs before those of `after` have ended
    seconds: ClassVar[float] = 1.0  # between two questions for the state of all

    def start(self, job: Job) -> str | None:
        """Start or submit a job; its handle, or None where there is no room now: asked again.

        The handle must be enough for `states` and `cancel` of another process where the jobs
        outlive the command. Raises RunError with the machine's own sentence where it refuses.
        """
        raise NotImplementedError

    def states(self, handles: Sequence[str]) -> Mapping[str, JobState]:
        """What is known of each job; one that is left out is taken as lost, and started again."""
        raise NotImplementedError

    def cancel(self, handles: Sequence[str]) -> None:
        """End these jobs as SIGTERM does, so that they write checkpoints; returns when they ended,
        or where jobs outlive the command at once.
        """
        raise NotImplementedError
