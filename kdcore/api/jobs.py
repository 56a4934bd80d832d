"""What an executor of sweeps starts, and what it tells of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


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
