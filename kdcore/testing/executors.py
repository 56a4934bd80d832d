"""Check the contract of executors with short jobs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from kdcore.api.jobs import Executor, Job, JobState
from kdcore.testing.claims import require

_LONGEST = 120.0  # seconds that a short job may take
_WRITES = "open('done', 'w').close()"
_WAITS = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
open('begun', 'w').close()
signal.pause()
"""


def check_executor(executor: Executor) -> None:
    """Assert that jobs run to their end, that failures are reported, and that `cancel` ends a job.

    Starts three short jobs in a temporary folder below the current one, which the executor's
    machines must see. Raises UsageError or RunError if jobs cannot be started here.
    """
    with TemporaryDirectory(prefix="kdcore-executor-", dir=".") as name:
        folder = Path(name).resolve()
        well = _ended(executor, _start(executor, folder, "well", _WRITES))
        require(well.code in (0, None), executor, f"says {well.code} of a job that ended well")
        require((folder / "done").exists(), executor, "says that a job ended that has not run")
        ill = _ended(executor, _start(executor, folder, "ill", "raise SystemExit(7)"))
        require(
            ill.code in (7, None) and ill != well, executor, "does not report that a job failed"
        )
        handle = _start(executor, folder, "long", _WAITS)
        _until(executor, lambda: (folder / "begun").exists(), "has not run a job after two minutes")
        executor.cancel([handle])
        _ended(executor, handle)


def _start(executor: Executor, folder: Path, name: str, code: str) -> str:
    command = [sys.executable, "-c", f"import os; os.chdir({str(folder)!r})\n{code}"]
    job = Job(f"check-{name}", command, folder / f"{name}.log", folder)
    found: list[str] = []

    def begun() -> bool:
        handle = executor.start(job)
        found.extend([handle] if handle is not None else [])
        return handle is not None

    _until(executor, begun, "has no room for a job after two minutes")
    require(isinstance(found[0], str), executor, "start gives no text as a handle")
    return found[0]


def _ended(executor: Executor, handle: str) -> JobState:
    found: list[JobState] = []

    def ended() -> bool:
        state = executor.states([handle])[handle]
        found.append(state)
        return state.phase == "ended"

    _until(executor, ended, "does not report after two minutes that a job ended")
    return found[-1]


def _until(executor: Executor, holds: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + _LONGEST
    while not holds():
        require(time.monotonic() < until, executor, otherwise)
        time.sleep(min(executor.seconds, 0.1))
