"""Components that observe a run: evals and loggers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from kdcore.api.component import AnyRun, Component


class Eval(Component):
    """Scores of the student, numbers or texts, measured during and after training."""

    component_kind: ClassVar[str] = "eval"
    always: ClassVar[bool] = False  # used by every run, unless its plugin is blocked
    needs_teacher: ClassVar[bool] = False

    def measure(self, run: AnyRun) -> Mapping[str, float | str]:
        """Scores by name, logged as `eval/<name>`. Every process calls it and returns the same."""
        raise NotImplementedError


class Logger(Component):
    """Event hooks as methods, each with `@hookimpl`. A logger that raises is disabled.

    RunError ends the run instead: for a logger whose records must not be lost.
    """

    component_kind: ClassVar[str] = "logger"
    always: ClassVar[bool] = False  # used by every run, unless its plugin is blocked
