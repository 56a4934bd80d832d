"""A tiny run, for components that need one: teachers, tokenizers, evals and loggers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from kdcore.api.component import Component
from kdcore.api.run import Run
from kdcore.plugin.manager import PluginManager
from kdcore.runs.open import begun, open_stage
from kdcore.runs.runner import RunRequest, run_all
from kdcore.testing import tiny


@contextmanager
def tiny_run(listeners: Iterable[Component] = ()) -> Iterator[Run]:
    """A finished run of two steps, opened: a Llama, 257 ids, a teacher, rows of both splits.

    `listeners` receive its events. The folder is deleted at the end of the block.
    """
    host = _quiet_host()
    with TemporaryDirectory(prefix="kdcore-testing-") as folder:
        recipe = Path(folder, "tiny.toml")
        recipe.write_text(tiny.RECIPE, "utf-8")
        with host.listening(listeners), _warnings_only():
            *_, last = run_all(RunRequest(recipe=str(recipe), out=Path(folder, "runs")), host)
        yield open_stage(begun(last, host))


def _quiet_host() -> PluginManager:
    """All plugins except those with loggers of every run, so that checks show no panel."""
    loggers = PluginManager().provided("logger").values()
    shown = [each.plugin.name for each in loggers if getattr(each.cls, "always", False)]
    return PluginManager(off=shown, files=[str(Path(tiny.__file__))])


@contextmanager
def _warnings_only() -> Iterator[None]:
    log = logging.getLogger("kdcore")
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)
