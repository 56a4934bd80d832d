"""Loading a teacher with the teachers nested in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdcore.api import Teacher
    from kdcore.run import Run


def load_teacher(run: Run, teacher: Teacher) -> None:
    """Load a teacher and those nested in it, as the engine does before a run.

    For teachers that load their members themselves (`loads_members`).
    """
    from kdcore.build import walk
    from kdcore.setup import load_teachers

    load_teachers(run, walk(teacher))
