"""Loading a teacher with the teachers nested in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdcore.api import Component
    from kdcore.run import Run


def load_teacher(run: Run, component: Component) -> None:
    """Load a teacher, or those in a selection, and all nested ones, as before a run.

    For teachers that load their members themselves (`loads_members`), and for opened runs.
    """
    from kdcore.build import walk
    from kdcore.setup import load_teachers

    load_teachers(run, walk(component))
