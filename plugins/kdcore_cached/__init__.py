"""A teacher cache: outputs are stored at their first use, for later epochs and runs."""

from __future__ import annotations

from collections.abc import Sequence

from kdcore import Teacher, hookimpl
from kdcore_cached.teacher import CachedTeacher


@hookimpl
def kdcore_teachers() -> Sequence[type[Teacher]]:
    """The teacher `cached`."""
    return [CachedTeacher]
