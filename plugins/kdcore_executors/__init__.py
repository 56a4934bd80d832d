"""Where a sweep's runs execute: local processes, one per local GPU, or SLURM jobs."""

from __future__ import annotations

from collections.abc import Sequence

from kdcore import Executor, hookimpl
from kdcore_executors.processes import Gpus, Local
from kdcore_executors.slurm import Slurm


@hookimpl
def kdcore_executors() -> Sequence[type[Executor]]:
    """The executors of this package."""
    return [Local, Gpus, Slurm]
