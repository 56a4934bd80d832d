"""Teachers behind a server: vLLM's completions or SGLang's /generate, over plain HTTP."""

from __future__ import annotations

from collections.abc import Sequence

from kdcore import Teacher, hookimpl


@hookimpl
def kdcore_teachers() -> Sequence[type[Teacher]]:
    """The teacher `served`."""
    from kdcore_served.teacher import Served

    return [Served]
