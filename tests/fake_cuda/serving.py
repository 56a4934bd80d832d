"""Runs command lines of `__main__` in forks of a process that has the device and the libraries.

A fork costs a fraction of a second, a process that imports everything six. Each line of the input
is a request: what to run, where, with which environment, and the file for what is printed. The
answer is a line with its exit code.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from importlib import import_module
from typing import NoReturn

from fake_cuda.__main__ import run
from fake_cuda.device import install
from fake_cuda.library import library

_LIBRARIES = (
    *("accelerate", "datasets", "peft", "pytest", "torch.distributed.tensor"),
    *("transformers.models.llama.modeling_llama", "transformers.trainer_utils"),
    *("kdcore.cli.main", "kdcore.runs.runner"),
)


def main() -> None:
    """Until the input ends."""
    install(library())
    for name in _LIBRARIES:
        import_module(name)
    gc.freeze()  # no fork looks at what all of them share
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _work(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _work(arguments: list[str], folder: str, environment: dict[str, str], printed: str) -> NoReturn:
    code = 1
    try:
        output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        os.environ.clear()
        os.environ |= environment
        code = run(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
