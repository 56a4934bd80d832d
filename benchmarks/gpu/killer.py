"""A plugin that kills its run when a step begins, as a machine that goes down does."""

from __future__ import annotations

import os
import signal

from kdcore import Run, hookimpl


@hookimpl
def kdcore_step_start(run: Run, step: int) -> None:
    """At the step of KDCORE_KILL_AT."""
    if step == int(os.environ["KDCORE_KILL_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
