"""Where the runs of a sweep are started: processes here, one for each GPU here, SLURM's queue."""

from __future__ import annotations

from collections.abc import Sequence

from kdcore import Executor, hookimpl
from kdcore_executors.processes import Gpus, Local
from kdcore_executors.slurm import Slurm


@hookimpl
def kdcore_executors() -> Sequence[type[Executor]]:
    """Those of this package."""
    return [Local, Gpus, Slurm]
