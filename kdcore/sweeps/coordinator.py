"""Runs a sweep's tasks on an executor: starts them when their inputs exist, and retries."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kdcore.api.jobs import Job, JobState
from kdcore.errors import Interrupted, PluginError, RunError, UsageError
from kdcore.files import write_whole
from kdcore.guard import call_checked
from kdcore.runs.folder import CHECKPOINTS, FAILURE, RECIPE, failure_of, finished
from kdcore.sweeps.deferred import DeferredTask
from kdcore.training.checkpoints.folders import in_order
from kdcore.training.signals import SIGNALS, known_as

if TYPE_CHECKING:
    from kdcore.api.jobs import Executor
    from kdcore.sweeps.graph import Task
    from kdcore.sweeps.store import Store

_log = logging.getLogger("kdcore")
Phase = Literal["waiting", "queued", "running", "done", "failed", "blocked"]
_FINAL = {"done", "failed", "blocked"}
_HOPELESS = {UsageError.exit_code, PluginError.exit_code}  # retrying cannot help
_NAP = 0.1  # seconds between checks for signals
_SAYS = "kdcore: "  # prefix of a command's final error


@dataclass(eq=False)
class Progress:
    """The progress of a task."""

    task: Task
    phase: Phase = "waiting"
    reason: str = ""
    handle: str | None = None
    tries: int = 0  # consecutive attempts without progress
    step: int = -1  # of the newest checkpoint at its last start
    folder: Path | None = None
    earlier: bool = False  # its job was started by an earlier command


@dataclass(eq=False)
class Coordinator:
    """Runs every task to its end, or as far as possible."""

    tasks: dict[str, Task]
    store: Store
    executor: Executor
    retries: int
    plugins: tuple[str, ...]
    show: Callable[[Sequence[Progress]], None] = lambda progress: None
    progress: dict[str, Progress] = field(default_factory=dict)
    signal: int = 0
    left: dict[str, str] = field(default_factory=dict)  # handles of tasks that it no longer has

    def run(self) -> None:
        """Run until all tasks are settled. RunError: some failed. Interrupted: a signal came."""
        self.progress = {key: Progress(task) for key, task in self.tasks.items()}
        self._find()
        with self._noting_signals():
            while not self.signal and not all(p.phase in _FINAL for p in self.progress.values()):
                self._ask()
                self._advance()
                self.show([*self.progress.values()])
                self._pause()
            if self.signal:
                self._interrupted()
        self.show([*self.progress.values()])
        self._refuse_failures()

    def _find(self) -> None:
        """Find finished tasks, and running jobs of an earlier command."""
        before = self.store.jobs_of(self.executor.name) if self.executor.outlives else {}
        for key, each in self.progress.items():
            if not self._look(each):
                each.handle = before.get(key)
                each.earlier = each.handle is not None
                self.store.keep_recipe(each.task)
        self._find_left({key: each for key, each in before.items() if key not in self.tasks})

    def _find_left(self, handles: dict[str, str]) -> None:
        """Keep jobs of points that are no longer in the sweep, for `--cancel`."""
        if not handles:
            return
        states = call_checked(self.executor, "states", [*handles.values()], of=dict)
        ended = JobState("ended")
        self.left = {k: h for k, h in handles.items() if states.get(h, ended).phase != "ended"}
        if self.left:
            said = ", ".join(self.left.values())
            _log.warning("jobs of other points continue (%s); --cancel ends them too", said)

    def _look(self, each: Progress) -> bool:
        """Whether the task is finished, by any command."""
        each.folder = self.store.run_of(each.task)
        if each.folder is not None and finished(each.folder):
            each.phase, each.reason, each.handle = "done", "", None
            return True
        return False

    def _ask(self) -> None:
        """Poll the states of jobs."""
        mine = [each for each in self.progress.values() if each.handle is not None]
        if not mine:
            return
        handles = [str(each.handle) for each in mine]
        states = call_checked(self.executor, "states", handles, of=dict)
        for each in mine:
            state = states.get(each.handle, JobState("ended", None, "the job is lost"))
            if state.phase != "ended":
                each.phase, each.reason = state.phase, state.reason
            elif not self._look(each):
                self._ended(each, state)
        self._keep()

    def _ended(self, each: Progress, state: JobState) -> None:
        """A job ended before its run did: retry while that may help."""
        started_by_earlier, each.handle, each.earlier = each.earlier, None, False
        needs = [self.progress[need] for need in each.task.needs]
        if started_by_earlier or any(need.phase != "done" for need in needs):
            each.phase, each.reason = "waiting", ""
            return
        each.tries = 0 if self._step(each) > each.step else each.tries + 1
        each.reason = self._why(each, state)
        if state.reason and each.folder is not None and (each.folder / RECIPE).is_file():
            write_whole(each.folder / FAILURE, each.reason + "\n")  # for `kdcore show`
        hopeless = state.code in _HOPELESS or each.tries > self.retries
        each.phase = "failed" if hopeless else "waiting"

    def _why(self, each: Progress, state: JobState) -> str:
        said = failure_of(each.folder) if each.folder is not None else None
        if state.reason:
            return state.reason
        return said or _last_line(self.store.log_of(each.task)) or f"it ended with {state.code}"

    def _step(self, each: Progress) -> int:
        """The step of its newest checkpoint; 0 if there is none."""
        kept = in_order(each.folder / CHECKPOINTS) if each.folder is not None else []
        return max([int(path.name[5:]) for path in kept], default=0)

    def _advance(self) -> None:
        """Start ready tasks until the executor has no room."""
        for each in self.progress.values():
            needs = [self.progress[need] for need in each.task.needs]
            if each.phase in _FINAL or each.handle is not None:
                continue
            lost = [need for need in needs if need.phase in ("failed", "blocked")]
            if lost:
                each.phase, each.reason = "blocked", f"it needs {lost[0].task.name}"
            if lost or self._look(each):
                continue
            ready = all(need.phase == "done" or self._follows(need) for need in needs)
            if ready and not self._start(each, [need.handle for need in needs if need.handle]):
                return

    def _follows(self, need: Progress) -> bool:
        return self.executor.chains and need.handle is not None

    def _start(self, each: Progress, after: Sequence[str]) -> bool:
        """Start a task; returns whether there was room."""
        job = self._job(each, after)
        each.step = self._step(each)
        try:
            handle = call_checked(self.executor, "start", job, of=(str, type(None)))
        except RunError as error:
            each.phase, each.reason = "failed", str(error)
            return True
        if handle is None:
            return False
        each.handle, each.phase, each.reason = handle, "queued", ""
        self._keep()
        return True

    def _keep(self) -> None:
        """Save the handles of jobs that outlive this command, for the next one."""
        if self.executor.outlives:
            handles = {k: p.handle for k, p in self.progress.items() if p.handle is not None}
            self.store.keep_jobs(self.executor.name, self.left | handles)

    def _job(self, each: Progress, after: Sequence[str]) -> Job:
        task, asked = each.task, each.task.resources
        command = self._command(task)
        if task.waits:
            file = self.store.folder / f"{task.name}.json"
            self._deferred(task, command).write(file)
            command = [sys.executable, "-P", "-m", "kdcore.cli.control", str(file)]
        return Job(
            name=task.name,
            command=command,
            log=self.store.log_of(task),
            folder=self.store.folder,
            gpus=asked.gpus or 0,
            cpus=asked.cpus or 0,
            memory=asked.memory or "",
            hours=asked.hours or 0.0,
            after=tuple(after),
        )

    def _command(self, task: Task) -> list[str]:
        recipe, gpus = str(self.store.recipe_of(task)), task.resources.gpus or 0
        command = [sys.executable, "-P", "-m", "kdcore", "run", recipe]
        command += ["--out", str(self.store.out)]
        command += ["--stage", task.stage] if task.stage else []
        command += ["--processes", str(gpus)] if gpus > 1 else []
        return [*command, *(word for each in self.plugins for word in ("-p", each))]

    def _deferred(self, task: Task, command: Sequence[str]) -> DeferredTask:
        folders = [self.store.run_of(self.tasks[need]) for need in task.needs]
        twin, plain = (str(each) for each in (*folders, "")[:2])
        return DeferredTask(
            control=str(task.point.control),
            stage=task.stage,
            recipe=str(self.store.twin_of(task)),
            made=str(self.store.recipe_of(task)),
            twin=twin,
            plain=plain,
            plugins=self.plugins,
            command=tuple(command),
        )

    def _pause(self) -> None:
        until = time.monotonic() + self.executor.seconds
        while not self.signal and time.monotonic() < until:
            time.sleep(_NAP)

    @contextmanager
    def _noting_signals(self) -> Iterator[None]:
        """The first signal ends the sweep gracefully; a second ^C at once."""

        def note(number: int, frame: object) -> None:
            if self.signal and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.signal = known_as(number)

        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, note) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupted(self) -> None:
        handles = [each.handle for each in self.progress.values() if each.handle is not None]
        if self.executor.outlives and handles:
            raise Interrupted(
                f"interrupted; {len(handles)} submitted jobs continue, and the same command finds "
                "them again; with --cancel it ends them",
                self.signal,
            )
        self.executor.cancel(handles)
        raise Interrupted("interrupted; the same command resumes the sweep", self.signal)

    def _refuse_failures(self) -> None:
        failed = [each for each in self.progress.values() if each.phase in ("failed", "blocked")]
        if failed:
            lines = [f"{each.task.name}: {each.reason}" for each in failed]
            raise RunError(
                f"{len(failed)} of {len(self.tasks)} runs failed; the same command tries these "
                "again:\n" + "\n".join(lines)
            )


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text("utf-8", "replace").split("\n")
    except OSError:
        return ""
    said = [line.strip() for line in reversed(lines) if line.strip()]
    own = (line.removeprefix(_SAYS) for line in said if line.startswith(_SAYS))
    return next(own, said[0] if said else "")
