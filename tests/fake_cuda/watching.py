"""A plugin that counts what the steps of each run do on the device, from the third step on."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path

from fake_cuda.counting import Counted, chosen
from fake_cuda.library import library
from kdcore import Run, hookimpl

_FIRST = 3  # by then everything that is made once is made
_report = Path(os.environ["FAKE_CUDA_REPORT"])
_device = ctypes.CDLL(str(library()))
_counted: Counted | None = None
_before: dict[str, int] = {}


@hookimpl
def kdcore_step_start(run: Run, step: int) -> None:
    """Count between the beginnings of the third and of the last step."""
    global _counted, _before
    if step == _FIRST and run.device.type == "cuda":
        _counted, _before = Counted(), chosen(_device)
        _counted.__enter__()
    elif step == run.steps and _counted is not None:
        _counted.__exit__(None, None, None)
        _write(run, _counted, step - _FIRST)
        _counted = None


def _write(run: Run, counted: Counted, steps: int) -> None:
    backends = {name: n - _before[name] for name, n in chosen(_device).items()}
    found = {
        "stage": run.recipe.run_name,
        "steps": steps,
        "operations": dict(counted.operations),
        "waits": dict(counted.waits),
        "attention": backends,
    }
    with open(_report, "a") as report:
        report.write(json.dumps(found) + "\n")
