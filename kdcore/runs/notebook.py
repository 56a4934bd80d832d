"""Progress of a run in a notebook: one bar per stage, with the last loss."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from kdcore.api.component import Component, hookimpl

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from kdcore.api.hookspecs import Record
    from kdcore.api.run import Run


def notebook_progress() -> list[Component]:
    """The notebook listeners, if Python runs in a notebook that can update output; else none."""
    from rich.console import Console

    console = Console()
    if not console.is_jupyter or find_spec("ipywidgets") is None:
        return []
    return [NotebookProgress(console)]


class NotebookProgress(Component):
    """Progress bars of the stages of a run; finished ones remain."""

    name = "notebook"
    component_kind = "callback"

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Remaining(),
            TextColumn("{task.fields[said]}"),
            console=console,
        )
        self._task: TaskID | None = None

    @hookimpl
    def kdcore_run_start(self, run: Run) -> None:
        """Start a bar for the stage."""
        if run.main:
            name, done = run.recipe.run_name, run.step
            self._task = self._progress.add_task(name, total=run.steps, completed=done, said="")
            self._progress.start()

    @hookimpl
    def kdcore_log(self, run: Run, record: Record) -> None:
        """Advance it."""
        if self._task is not None:
            said = f"loss {record.loss:.4f}, {record.tokens_per_second:,.0f} tokens/s"
            self._progress.update(self._task, completed=record.step, said=said)

    @hookimpl
    def kdcore_run_end(self, run: Run, error: BaseException | None) -> None:
        """Leave it in place."""
        if self._task is not None:
            self._progress.stop()
            self._task = None
