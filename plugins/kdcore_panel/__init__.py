"""Training on the terminal: a live panel with curves, or plain lines without a terminal."""

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
    """Shows what is trained, how losses and scores develop, and the remaining time.

    A live panel on a terminal, otherwise a line per record; nothing if messages are limited to
    warnings (`-q`).
    """

    name = "panel"
    always = True

    def __post_init__(self) -> None:
        self._view: View | None = None

    @hookimpl
    def kdcore_run_start(self, run: Run) -> None:
        """Choose the view for this output."""
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
        """Count the step."""
        if self._view:
            with self._closing(self._view):
                self._view.step(step)

    @hookimpl
    def kdcore_log(self, record: Record) -> None:
        """Show training numbers."""
        if self._view:
            with self._closing(self._view):
                self._view.record(record)

    @hookimpl
    def kdcore_scores(self, step: int, scores: Mapping[str, float | str]) -> None:
        """Show an evaluation."""
        if self._view:
            with self._closing(self._view):
                self._view.scores(step, scores)

    @hookimpl
    def kdcore_run_end(self, error: BaseException | None) -> None:
        """Show the summary."""
        view, self._view = self._view, None
        if view:
            with self._closing(view):
                view.end(error)

    @contextmanager
    def _closing(self, view: View) -> Iterator[None]:
        """Restore the terminal before the engine disables a failing panel."""
        try:
            yield
        except BaseException:
            self._view = None
            view.close()
            raise


@hookimpl
def kdcore_loggers() -> Sequence[type[Logger]]:
    """The logger `panel`."""
    return [Panel]
