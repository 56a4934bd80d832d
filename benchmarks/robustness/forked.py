"""kdcore's commands as forks of one process that has imported everything: a start takes no time.

`command` runs one to its end, `begin` only starts it. Where it asks for several processes, these
are forks too. What it prints and says lies in printed.txt and said.txt of its folder.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, ClassVar

from kills import HANGS

from kdcore.training.signals import SIGNALS

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager

PROCESSES = "processes.txt"  # whom the command started, one number a line


def nothing() -> None:
    """Neither before nor after."""


def command(
    folder: Path,
    host: PluginManager,
    arguments: Sequence[str],
    before: Callable[[], None] = nothing,
    after: Callable[[], None] = nothing,
) -> int:
    """The command in a fork, whose folder and caches are there; its exit code."""
    return ended(begin(folder, host, arguments, before, after))


def begin(
    folder: Path,
    host: PluginManager,
    arguments: Sequence[str],
    before: Callable[[], None] = nothing,
    after: Callable[[], None] = nothing,
) -> int:
    """The same without waiting; the fork's process. It runs `before` and `after` itself."""
    return _forked(lambda: _child(folder, host, arguments, before, after))


def _forked(work: Callable[[], int]) -> int:
    """A process that ends with what `work` returns; `_main` lets signals through to it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    child = os.fork()
    if child == 0:
        code = 9
        try:
            code = work()
        finally:
            os._exit(code)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return child


def ended(child: int) -> int:
    """Wait for a fork; its exit code, negative where a signal ended it."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def said(folder: Path) -> str:
    """On stderr, by the last command."""
    return (folder / "said.txt").read_text(errors="replace")


def _child(
    folder: Path,
    host: PluginManager,
    arguments: Sequence[str],
    before: Callable[[], None],
    after: Callable[[], None],
) -> int:
    import datasets
    from kdcore_executors import processes

    from kdcore.cli import launch, main

    os.chdir(folder)
    for number, name in ((1, "printed.txt"), (2, "said.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    datasets.config.HF_DATASETS_CACHE = folder / "datasets"
    main.plugin_manager = lambda plugins: host
    names: dict[str, Any] = {"PIPE": subprocess.PIPE, "TimeoutExpired": subprocess.TimeoutExpired}
    vars(launch)["subprocess"] = SimpleNamespace(Popen=Forked, **names)
    vars(processes)["subprocess"] = SimpleNamespace(Popen=Forked, **names)
    before()
    return _main(arguments, after)


def _main(arguments: Sequence[str], after: Callable[[], None] = nothing) -> int:
    """With signals as a shell starts a command; a job in the background ignores some."""
    from kdcore.cli import main
    from kdcore.cli.at_once import AtOnceSignals

    class LetThrough(AtOnceSignals):
        def __enter__(self) -> AtOnceSignals:
            super().__enter__()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            return self

    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(HANGS)
    vars(main)["AtOnceSignals"] = (
        LetThrough  # a signal to what is no command yet is not of interest
    )
    sys.argv = ["kdcore", *arguments]
    try:
        main.main()
    except SystemExit as out:
        sys.stdout.flush()
        after()
        return int(out.code or 0)
    return 8


class Forked:
    """What `launch` and executors need of a subprocess.Popen of `python -P -m kdcore ARGUMENTS`."""

    open_ends: ClassVar[list[int]] = []  # of every child's standard input

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: int,
        stderr: IO[Any] | None,
        process_group: int | None,
        stdout: IO[Any] | None = None,
    ) -> None:
        self.returncode: int | None = None
        end, ours = os.pipe()  # the child's standard input ends with this process
        self.open_ends.append(ours)
        self.pid = _forked(lambda: self._process(arguments[4:], env, end, stdout, stderr))
        os.close(end)
        with open(PROCESSES, "a") as file:
            file.write(f"{self.pid}\n")

    def _process(
        self,
        arguments: Sequence[str],
        env: Mapping[str, str],
        end: int,
        stdout: IO[Any] | None,
        stderr: IO[Any] | None,
    ) -> int:
        os.setpgid(0, 0)
        for each in self.open_ends:
            os.close(each)
        os.dup2(end, 0)
        for number, file in ((1, stdout), (2, stderr)):
            if file is not None:
                os.dup2(file.fileno(), number)
        os.environ.clear()
        os.environ.update(env)
        return _main(arguments)

    def poll(self) -> int | None:
        """The exit code, or None."""
        if self.returncode is None:
            child, status = os.waitpid(self.pid, os.WNOHANG)
            if child:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, seconds: float) -> int:
        """The exit code, if it comes in time."""
        until = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("kdcore", seconds)
            time.sleep(0.02)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Where it has not ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """By SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """By SIGKILL."""
        self.send_signal(signal.SIGKILL)
