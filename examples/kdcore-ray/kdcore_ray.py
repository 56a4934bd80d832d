"""The executor `ray`: each run of a sweep is a task on a Ray cluster."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from kdcore import Executor, Job, JobState, UsageError, component, hookimpl

_POLL = 0.2  # seconds in which a task notices that it was cancelled
_TO_SAVE = 600.0  # seconds that a run has to write its checkpoint
# A run with these set watches the pipe on its standard input: when its worker is gone, it writes a
# checkpoint and ends. The processes of `--processes` work the same way.
_LAUNCHED = {"KDCORE_LAUNCHED": "yet to begin"}
_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12}
_LOST = {
    "WorkerCrashedError": "its Ray worker was killed",
    "NodeDiedError": "its Ray node is gone",
    "OutOfMemoryError": "Ray ended it: the node's memory ran out",
    "TaskCancelledError": "it was cancelled",
    "TaskUnschedulableError": "no node of the cluster has what it requests",
}


def work(command: Sequence[str], folder: str, log: str, begun: str) -> int:
    """The task: run the command in `folder` on a worker, and return its exit status.

    A cancelled task receives KeyboardInterrupt, and ends its run with a checkpoint.
    """
    Path(begun).parent.mkdir(parents=True, exist_ok=True)
    Path(begun).touch()
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        run = subprocess.Popen(
            list(command),
            cwd=folder,
            env={**os.environ, **_LAUNCHED},
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            start_new_session=os.name == "posix",
        )
    try:
        while run.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                run.wait(_POLL)
    except KeyboardInterrupt:
        run.terminate()
        run.wait(_TO_SAVE)
    return run.returncode


@component
class Ray(Executor):
    """Tasks on a Ray cluster: `--on ray` starts one here, `--on ray:HOST:6379` uses another one.

    All nodes must see the current folder, and have kdcore in the same place. A run requests
    `[resources]` `gpus`, `cpus` (1 if unspecified) and `memory`, and waits in Ray's queue until a
    node has them.
    """

    name = "ray"
    argument = "address"
    seconds = 0.5
    address: Annotated[
        str | None, Field(description="of the head node, or auto; by default a cluster here")
    ] = None

    def __post_init__(self) -> None:
        self._tasks: dict[str, Any] = {}  # Ray's references, by handle
        self._begun: dict[str, Path] = {}  # the file that a task writes where it starts

    def start(self, job: Job) -> str:
        """Submit a task. Ray queues it, so there is always room."""
        ray = self._ray()
        handle = f"{job.name}-{len(self._tasks)}"
        begun = job.folder.resolve() / "ray" / f"{os.getpid()}-{handle}"
        options: dict[str, Any] = {"name": job.name, "max_retries": 0, "num_cpus": job.cpus or 1}
        if job.gpus:
            options["num_gpus"] = job.gpus
        if job.memory:
            options["memory"] = _bytes(job.memory)
        arguments = (list(job.command), os.getcwd(), str(job.log.resolve()), str(begun))
        self._tasks[handle] = ray.remote(work).options(**options).remote(*arguments)
        self._begun[handle] = begun
        return handle

    def states(self, handles: Sequence[str]) -> Mapping[str, JobState]:
        """The state of each; a task is queued until its file exists."""
        return {each: self._state(each) for each in handles if each in self._tasks}

    def cancel(self, handles: Sequence[str]) -> None:
        """Cancel them, and wait until their runs have written checkpoints."""
        ray = self._ray()
        tasks = [self._tasks[each] for each in handles if each in self._tasks]
        for task in tasks:
            ray.cancel(task)
        ray.wait(tasks, num_returns=len(tasks), timeout=_TO_SAVE)

    def _state(self, handle: str) -> JobState:
        ray = self._ray()
        task = self._tasks[handle]
        ended, _ = ray.wait([task], timeout=0)
        if not ended:
            return JobState("running" if self._begun[handle].exists() else "queued")
        try:
            return _ended(int(ray.get(task)))
        except Exception as error:  # Ray raises its own types for lost workers and nodes
            name = type(error).__name__
            return JobState("ended", None, _LOST.get(name, f"Ray: {_first_line(error)}"))

    def _ray(self) -> Any:
        """Ray, connected."""
        try:
            import ray
        except ImportError:
            raise UsageError("--on ray needs Ray: pip install ray") from None
        if not ray.is_initialized():
            _connect(ray, self.address)
        return ray


def _connect(ray: Any, address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers are sent the task by value: this module need not be importable there.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        ray.init(address=address, include_dashboard=None, log_to_driver=False, logging_level=30)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = address or "here"
        why = str(error).strip().rpartition("\n")[2]  # below a traceback of Ray's
        raise UsageError(
            f"no Ray cluster at {where}: {why}. Type --on ray to start one here, or start its head "
            "with: ray start --head"
        ) from error


def _ended(code: int) -> JobState:
    if code < 0:
        return JobState("ended", None, f"signal {-code} killed it")
    return JobState("ended", code)


def _bytes(memory: str) -> int:
    """Bytes of kdcore's "32GB"."""
    found = re.fullmatch(r"(\d+)([MGT]B)", memory)
    assert found is not None, memory  # kdcore has checked the form
    return int(found[1]) * _UNITS[found[2]]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


@hookimpl
def kdcore_executors() -> Sequence[type[Executor]]:
    """The executor `ray`."""
    return [Ray]
