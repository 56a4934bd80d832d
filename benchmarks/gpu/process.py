"""Processes of their own that end in time, with everything that they started.

A rehearsal forks, so that the libraries are imported once. CUDA does not live through a fork: a day
on a GPU starts Python anew.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

PATIENCE = 0.05  # seconds between two looks


def forked(work: Callable[[], object], log: Path, seconds: float) -> int | None:
    """The exit code of `work` in a fork of this process, or None where the time was over."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        os.setsid()
        code = 1
        try:
            said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(said, 1)
            os.dup2(said, 2)
            work()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    until = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            _end(pid)
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            _end(pid)
            os.waitpid(pid, 0)
            return None
        time.sleep(PATIENCE)


def started(
    arguments: Sequence[str], environment: Mapping[str, str], log: Path, seconds: float
) -> int | None:
    """The same of a Python that is started with these arguments."""
    with log.open("w") as said:
        child = subprocess.Popen(
            [sys.executable, *arguments],
            env=dict(environment),
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(child.pid)
        child.wait()


def _end(leader: int) -> None:
    """What is left of the session that this process began."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
