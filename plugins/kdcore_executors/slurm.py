"""SLURM jobs through submitit, with dependencies, and requeued after a time limit."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from kdcore import Executor, Job, JobState, RunError, UsageError, component

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

_SAVE = 120  # seconds between SLURM's signal and its time limit
_REQUEUES = 1000  # a run continues however often its time limit ends it
_MINUTES = 60
_QUEUED = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "RESV_DEL_HOLD"}
_RUNNING = {"RUNNING", "COMPLETING", "STOPPED", "SIGNALING", "STAGE_OUT"}
_NEVER = "DependencyNeverSatisfied"
_WORDS = {
    "OUT_OF_MEMORY": "the scheduler ended it: out of memory ([resources] memory asks for more)",
    "NODE_FAIL": "its node failed",
    "TIMEOUT": "it reached its time limit",
    "CANCELLED": "it was cancelled",
    "PREEMPTED": "it was preempted",
    "BOOT_FAIL": "its node did not start",
    "DEADLINE": "it reached its deadline",
}


class Command:
    """The command on a node: a signal ends it with a checkpoint, and a requeued job resumes it."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self._process = 0

    def __call__(self) -> int:
        """Run it. SIGUSR2 is submitit's; SIGUSR1 and SIGTERM act alike, except when cancelled."""
        requeue: Any = signal.getsignal(signal.SIGUSR2)

        def note(number: int, frame: Any) -> None:
            if number == signal.SIGTERM and _is_ending():
                self._end()
                sys.exit(128 + signal.SIGTERM)
            requeue(number, frame)

        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, note)
        self._process = os.posix_spawn(self.command[0], self.command, dict(os.environ))
        if code := self._wait():
            os._exit(code)  # the job's own exit code, which SLURM reports
        return 0

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit before it requeues the job."""
        from submitit.helpers import DelayedSubmission

        self._end()
        return DelayedSubmission(Command(self.command))

    def _end(self) -> None:
        os.kill(self._process, signal.SIGTERM)
        self._wait()

    def _wait(self) -> int:
        # Does not reap the process: the signal handler may be waiting for it too.
        ended = os.waitid(os.P_PID, self._process, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        return ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status


def _is_ending() -> bool:
    """Whether this job is being cancelled; a job about to be preempted is still running."""
    said = _asked(["scontrol", "show", "job", os.environ.get("SLURM_JOB_ID", "")])
    return said is not None and "JobState=RUNNING" not in said


@component
class Slurm(Executor):
    """SLURM: one job per run, with dependencies. Needs kdcore[slurm] (submitit).

    `[stage.NAME.resources]` of a run overrides the options given here for all runs.
    """

    name = "slurm"
    outlives = True
    chains = True
    seconds = 5.0
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: Annotated[str | None, Field(description="of a job, such as 4:00:00")] = None
    gres: Annotated[str | None, Field(description="such as gpu:1")] = None
    mem: Annotated[str | None, Field(description="of a node, such as 32GB")] = None
    cpus_per_task: Annotated[int | None, Field(ge=1)] = None
    constraint: str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    reservation: str | None = None
    setup: Annotated[
        list[str], Field(default_factory=list, description="shell lines before the run")
    ]
    more: Annotated[
        dict[str, str], Field(default_factory=dict, description="further options of sbatch")
    ]
    max_jobs: Annotated[int, Field(ge=1, description="queued and running at a time")] = 50

    def __post_init__(self) -> None:
        self._open: set[str] = set()  # handles not known to have ended

    def start(self, job: Job) -> str | None:
        """Submit a job that depends on the jobs it needs."""
        if len(self._open) >= self.max_jobs:
            return None
        made = _submitit(job.folder / "slurm", self._time(job))
        made.update_parameters(**self._parameters(job))
        try:
            handle = str(made.submit(Command(job.command)).job_id)
        except Exception as error:  # submitit raises various types for errors of sbatch
            said = _sentence(str(error))
            if "limit" in said.lower() and self._open:
                return None  # the queue is full; retried when a job has ended
            raise RunError(f"SLURM refused {job.name}: {said}") from error
        self._open.add(handle)
        _link(job.log, job.folder / "slurm" / f"{handle}_0_log.err")
        return handle

    def states(self, handles: Sequence[str]) -> Mapping[str, JobState]:
        """From squeue; for jobs no longer in it, from scontrol or sacct."""
        listed = _listed()
        if listed is None:
            return {each: JobState("queued", None, "SLURM does not answer now") for each in handles}
        found = {each: self._state(each, *listed.get(each, ("", ""))) for each in handles}
        self._open = {each for each in handles if found[each].phase != "ended"}
        return found

    def cancel(self, handles: Sequence[str]) -> None:
        """Cancel them with scancel; running ones write a checkpoint. RunError: some are left."""
        if not handles or _asked(["scancel", *handles]) is not None:
            return
        # scancel also fails if one of them ended long ago.
        listed = _listed()
        going = _QUEUED | _RUNNING
        left = [each for each in handles if listed is None or listed.get(each, [""])[0] in going]
        if left:
            raise RunError(
                f"SLURM did not cancel {', '.join(left)}: type the same command on a login node, "
                f"or scancel {' '.join(left)}"
            )

    def _state(self, handle: str, state: str, reason: str) -> JobState:
        if reason == _NEVER:
            _asked(["scancel", handle])
            return JobState("ended", None, "a run that it needs has failed")
        if state in _QUEUED:
            why = "" if reason in ("None", "") else f"SLURM: {reason}"
            return JobState("queued", None, why)
        if state in _RUNNING:
            return JobState("running")
        return _ended(handle, state)

    def _time(self, job: Job) -> str | None:
        """A job's time limit in sbatch's format."""
        return str(max(1, round(job.hours * _MINUTES))) if job.hours else self.time

    def _parameters(self, job: Job) -> dict[str, Any]:
        """Under submitit's names."""
        own = ("partition", "account", "qos", "gres", "constraint", "exclude")
        given: dict[str, Any] = {name: getattr(self, name) for name in own}
        time = self._time(job)
        further = {"nodelist": self.nodelist, "reservation": self.reservation, "time": time}
        if job.after:
            further |= {"dependency": f"afterok:{':'.join(job.after)}"}
        if job.gpus:
            given["gres"] = f"gpu:{job.gpus}"
        given |= {
            "job_name": job.name,
            "mem": job.memory or self.mem,
            "cpus_per_task": job.cpus or self.cpus_per_task,
            "signal_delay_s": _SAVE,
            "setup": self.setup or None,
            "additional_parameters": {
                **{key: value for key, value in further.items() if value is not None},
                "requeue": True,
                **self.more,
            },
        }
        return {key: value for key, value in given.items() if value is not None}


def _submitit(folder: Path, time: str | None) -> Any:
    """submitit's executor, whose default time limit is five minutes."""
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UsageError(
            "there is no SLURM here (sbatch is not found): type --on local:N, or run this on a "
            "login node"
        )
    try:
        from submitit import SlurmExecutor
    except ImportError:
        raise UsageError("--on slurm needs submitit: pip install 'kdcore[slurm]'") from None

    class WithoutLimit(SlurmExecutor):
        def _make_submission_file_text(self, command: str, uid: str) -> str:
            lines = super()._make_submission_file_text(command, uid).split("\n")
            return "\n".join(line for line in lines if not line.startswith("#SBATCH --time="))

    folder.mkdir(parents=True, exist_ok=True)
    cls = SlurmExecutor if time is not None else WithoutLimit
    return cls(folder=folder, max_num_timeout=_REQUEUES)


def _listed() -> dict[str, tuple[str, str]] | None:
    """State and reason of the user's queued jobs; None if SLURM does not answer."""
    said = _asked(["squeue", "-h", "--me", "-o", "%i %T %r"])
    if said is None:
        return None
    rows = [line.split(None, 2) for line in said.splitlines()]
    return {row[0]: (row[1], row[2].strip()) for row in rows if len(row) == 3}


def _ended(handle: str, state: str) -> JobState:
    """The final state of a job that has left the queue."""
    said = _asked(["scontrol", "show", "job", handle]) or ""
    found = re.search(r"JobState=(\w+)", said)
    code = re.search(r"ExitCode=(\d+):(\d+)", said)
    state = found[1] if found else state
    if not found and (rows := _asked(["sacct", "-X", "-n", "-P", "-j", handle, "-o", "State"])):
        state = rows.split()[0]
    if state in _WORDS:
        return JobState("ended", None, f"SLURM: {_WORDS[state]}")
    return JobState("ended", int(code[1]) if code else None)


def _asked(command: Sequence[str]) -> str | None:
    """The output of a SLURM command; None if it fails or is missing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _sentence(said: str) -> str:
    """sbatch's own message out of submitit's error."""
    lines = [line.strip() for line in said.splitlines() if "error:" in line]
    cut = [line.partition("error:")[2].strip() for line in lines]
    return "; ".join(dict.fromkeys(cut)) or said.strip().partition("\n")[0]


def _link(log: Path, target: Path) -> None:
    """Link the task's log to SLURM's output file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    log.symlink_to(os.path.relpath(target, log.parent))
