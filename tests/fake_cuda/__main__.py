"""Runs command lines on the fake device, one after another: what follows `python -m`.

    PYTHONPATH=tests python -m fake_cuda kdcore run quickstart + kdcore show last

A command that begins with "cpu" stays on the CPU, one that begins with "refused" has to fail. Ends
with the first exit code that is not 0.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from itertools import groupby

from fake_cuda.device import install
from fake_cuda.library import library

UNEXPECTED = 3  # kdcore's exit code for an error of its own


def main() -> int:
    """Install the device, then run each command."""
    install(library())
    return run(sys.argv[1:])


def run(arguments: Sequence[str]) -> int:
    """Each command; the first exit code that is not 0."""
    if older := os.environ.get("FAKE_CUDA_TORCH"):
        import torch

        torch.__version__ = older
    commands = [list(each) for plus, each in groupby(arguments, "+".__eq__) if not plus]
    return next((code for command in commands if (code := _run(command))), 0)


def _run(command: list[str]) -> int:
    if command[0] == "refused":
        return int(_run(command[1:]) in (0, UNEXPECTED))
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    on_cpu = command[0] == "cpu"
    os.environ["ACCELERATE_USE_CPU"] = str(on_cpu).lower()
    sys.argv = command[1:] if on_cpu else command
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
