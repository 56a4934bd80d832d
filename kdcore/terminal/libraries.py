"""Replaces the progress bars of Hugging Face libraries by kdcore's own."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Any

from tqdm.std import tqdm

from kdcore.terminal.bars import progress


@contextmanager
def without_bars() -> Iterator[None]:
    """Disables their bars in this block, and restores them afterwards."""
    from importlib import import_module

    from transformers.utils import logging as transformers

    hub: Any = import_module("huggingface_hub.utils")

    with ExitStack() as after:
        if not hub.are_progress_bars_disabled():
            hub.disable_progress_bars()
            after.callback(hub.enable_progress_bars)
        if transformers.is_progress_bar_enabled():
            transformers.disable_progress_bar()  # type: ignore[no-untyped-call]
            after.callback(transformers.enable_progress_bar)
        datasets = sys.modules.get("datasets")  # if not imported, it draws nothing
        if datasets is not None and not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            after.callback(datasets.enable_progress_bars)
        yield


class DownloadBar(tqdm):  # type: ignore[misc]
    """A `tqdm_class` for huggingface_hub and transformers that shows kdcore's bars."""

    monitor_interval = 0  # no monitor thread

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options |= {"file": io.StringIO(), "disable": False}
        self._around = ExitStack()
        super().__init__(*arguments, **options)
        unit = "B" if self.unit == "B" else ""
        self._bar = self._around.enter_context(progress(self._label(), self.total, unit))

    def _label(self) -> str:
        desc = str(self.desc or "").removesuffix(": ").rpartition("/")[2]
        return desc if "ownload" in desc else f"downloading {desc}".strip()

    def display(self, *_: Any, **__: Any) -> bool:
        """Draws nothing; forwards the state to kdcore's bar."""
        if bar := vars(self).get("_bar"):
            bar.label, bar.total, bar.done = self._label(), self.total, float(self.n)
        return True

    def close(self) -> None:
        """The download is complete."""
        super().close()
        self._around.close()


# tqdm's own lock spans processes.
DownloadBar.set_lock(RLock())
