"""`python -m kdcore.cli.control TASK.json`: prepares a sweep's control, and becomes its run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from kdcore.cli.main import exit_code_of, plugin_manager
from kdcore.sweeps.deferred import DeferredTask, make_recipe


def main(path: str) -> None:
    """Ends as the run does, or with the exit code of the error before it."""
    task = DeferredTask.read(Path(path))
    try:
        make_recipe(task, plugin_manager(list(task.plugins)))
    except Exception as error:
        raise SystemExit(exit_code_of(error)) from error
    os.execv(task.command[0], task.command)


if __name__ == "__main__":
    main(sys.argv[1])
