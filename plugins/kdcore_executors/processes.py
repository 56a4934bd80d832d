"""Processes on this machine: a fixed number at a time, or one per GPU."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated

from pydantic import Field

from kdcore import Executor, Job, JobState, UsageError, component

_TO_SAVE = 600.0  # seconds that a run has to write its checkpoint
# A run with these set watches the pipe on its standard input: when the starting process is gone,
# it writes a checkpoint and ends. The processes of `--processes` work the same way.
_LAUNCHED = {"KDCORE_LAUNCHED": "yet to begin"}


class _Processes:
    """Processes that end with this one, each after writing a checkpoint."""

    def __init__(self) -> None:
        self._found: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, job: Job, environment: Mapping[str, str]) -> str:
        """Start a run; return its handle."""
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            made = subprocess.Popen(
                list(job.command),
                env={**os.environ, **_LAUNCHED, **environment},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                process_group=0 if os.name == "posix" else None,  # Ctrl-C does not reach it
            )
        self._found[str(made.pid)] = made
        return str(made.pid)

    def busy(self) -> list[str]:
        """The handles of running processes."""
        return [handle for handle, each in self._found.items() if each.poll() is None]

    def states(self, handles: Sequence[str]) -> dict[str, JobState]:
        """The state of each."""
        return {handle: self._state(handle) for handle in handles if handle in self._found}

    def _state(self, handle: str) -> JobState:
        code = self._found[handle].poll()
        if code is None:
            return JobState("running")
        if code < 0:
            memory = ", as the system does where its memory runs out" if code == -9 else ""
            return JobState("ended", None, f"signal {-code} killed it{memory}")
        return JobState("ended", code)

    def cancel(self, handles: Sequence[str]) -> None:
        """Stop them, and wait until they have ended."""
        mine = [self._found[handle] for handle in handles if handle in self._found]
        for each in mine:
            with suppress(ProcessLookupError):
                each.terminate()
        until = time.monotonic() + _TO_SAVE
        for each in mine:
            try:
                each.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                each.kill()
                each.wait()


@component
class Local(Executor):
    """Processes on this machine, `workers` at a time: `--on local:2`."""

    name = "local"
    argument = "workers"
    seconds = 0.2
    workers: Annotated[int, Field(ge=1, description="runs at a time")] = 1

    def __post_init__(self) -> None:
        self._processes = _Processes()

    def start(self, job: Job) -> str | None:
        """Start a run with its share of the cores, unless the number of threads is set."""
        if len(self._processes.busy()) >= self.workers:
            return None
        threads = job.cpus or max(1, (os.cpu_count() or 1) // self.workers)
        given = os.environ.get("OMP_NUM_THREADS", str(threads))
        return self._processes.start(job, {"OMP_NUM_THREADS": given})

    def states(self, handles: Sequence[str]) -> Mapping[str, JobState]:
        """The state of each."""
        return self._processes.states(handles)

    def cancel(self, handles: Sequence[str]) -> None:
        """Stop them with checkpoints, and wait."""
        self._processes.cancel(handles)


def _devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return named[:count] if any(named) else [str(n) for n in range(count)]


@component
class Gpus(Executor):
    """This machine's GPUs, one per run, or as many as the run's `gpus` requests."""

    name = "gpus"
    seconds = 0.5

    def __post_init__(self) -> None:
        self._processes = _Processes()
        self._devices: list[str] | None = None
        self._taken: dict[str, list[str]] = {}  # by handle

    def start(self, job: Job) -> str | None:
        """Start a run on the first free GPUs."""
        if self._devices is None:
            self._devices = _devices()
        wanted = job.gpus or 1
        if wanted > len(self._devices):
            here = len(self._devices) or "none"
            raise UsageError(
                f"{job.name} takes {wanted} GPU{'s' * (wanted > 1)}, and {here} can be used here: "
                "type --on local:1 for the CPU, or lower [resources] gpus"
            )
        busy = self._processes.busy()
        taken = {each for handle in busy for each in self._taken[handle]}
        free = [each for each in self._devices if each not in taken][:wanted]
        if len(free) < wanted:
            return None
        handle = self._processes.start(job, {"CUDA_VISIBLE_DEVICES": ",".join(free)})
        self._taken[handle] = free
        return handle

    def states(self, handles: Sequence[str]) -> Mapping[str, JobState]:
        """The state of each."""
        return self._processes.states(handles)

    def cancel(self, handles: Sequence[str]) -> None:
        """Stop them with checkpoints, and wait."""
        self._processes.cancel(handles)
