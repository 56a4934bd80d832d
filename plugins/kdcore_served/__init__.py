"""Served models: a teacher (vLLM's completions, SGLang's /generate), and a writer of answers."""

from __future__ import annotations

from collections.abc import Sequence

from kdcore import Rollout, Teacher, hookimpl


@hookimpl
def kdcore_teachers() -> Sequence[type[Teacher]]:
    """The teacher `served`."""
    from kdcore_served.teacher import Served

    return [Served]


@hookimpl
def kdcore_rollouts() -> Sequence[type[Rollout]]:
    """The writer `served`."""
    from kdcore_served.writer import ServedWrites

    return [ServedWrites]
