"""Training on the terminal: a calm frame with curves, or plain lines where nobody watches."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kdcore import Logger, Record, Run, component, hookimpl

if TYPE_CHECKING:
    from kdcore_panel.views import View


@component
class Panel(Logger):
    """Shows what is trained, how the losses and scores move, and how long it will take.

    On a terminal a live frame, otherwise a line for each record; nothing where messages are turned
    down to warnings (`-q`).
    """

    name = "panel"
    always = True

    def __post_init__(self) -> None:
        self._view: View | None = None

    @hookimpl
    def kdcore_run_start(self, run: Run) -> None:
        """Choose how to tell the run."""
        if not run.main or not logging.getLogger("kdcore").isEnabledFor(logging.INFO):
            return
        from rich.console import Console

        from kdcore_panel.views import Frames, Lines

        console = Console(stderr=True)
        watched = sys.stderr.isatty() and not console.is_dumb_terminal
        view = Frames(console, run) if watched else Lines(console, run)
        with self._closing(view):
            view.start()
        self._view = view

    @hookimpl
    def kdcore_step_start(self, step: int) -> None:
        """Count."""
        if self._view:
            with self._closing(self._view):
                self._view.step(step)

    @hookimpl
    def kdcore_log(self, record: Record) -> None:
        """Take in training numbers."""
        if self._view:
            with self._closing(self._view):
                self._view.record(record)

    @hookimpl
    def kdcore_scores(self, step: int, scores: Mapping[str, float | str]) -> None:
        """Take in an evaluation."""
        if self._view:
            with self._closing(self._view):
                self._view.scores(step, scores)

    @hookimpl
    def kdcore_run_end(self, error: BaseException | None) -> None:
        """Sum up."""
        view, self._view = self._view, None
        if view:
            with self._closing(view):
                view.end(error)

    @contextmanager
    def _closing(self, view: View) -> Iterator[None]:
        """Give the terminal back before the engine switches a failing panel off."""
        try:
            yield
        except BaseException:
            self._view = None
            view.close()
            raise


@hookimpl
def kdcore_loggers() -> Sequence[type[Logger]]:
    """The panel."""
    return [Panel]
