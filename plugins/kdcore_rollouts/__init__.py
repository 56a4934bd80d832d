"""Writers of rollouts: the student, a teacher, a replay buffer, or several of these."""

from __future__ import annotations

from collections.abc import Sequence

from kdcore import Rollout, hookimpl
from kdcore_rollouts.replay import Replay
from kdcore_rollouts.several import Several
from kdcore_rollouts.student import StudentWrites
from kdcore_rollouts.teacher import TeacherWrites


@hookimpl
def kdcore_rollouts() -> Sequence[type[Rollout]]:
    """The writers of this package."""
    return [StudentWrites, TeacherWrites, Replay, Several]
