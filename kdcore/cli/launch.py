"""Several processes per command: `--processes N`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from tempfile import TemporaryFile
from threading import Thread
from typing import IO

from kdcore.cli.launchers import YES
from kdcore.errors import Interrupted, ProcessLost, StartAgain
from kdcore.training.signals import SIGNALS, known_as

_TO_END = 10.0  # seconds that processes get to exit after one has ended
_TO_SAVE = 600.0  # if one of them may write a checkpoint first
# A terminal's ^C is forwarded by the launcher; otherwise processes would get it twice.
_GROUP = 0 if os.name == "posix" else None
_POLLING = 0.02  # seconds; short, to see which process ended first
_LAUNCHED, _YET = "KDCORE_LAUNCHED", "yet to begin"
_LOST = 76  # exit code of a process that ended because it lost another one


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `python -m kdcore ARGUMENTS` in N processes; the first failure ends all of them.

    Only the first process prints; output of others is shown if they failed with another error.
    Restarts all processes on request. Returns the exit code of the first that failed, or 0.
    """
    while (code := _launch(arguments, processes)) == StartAgain.exit_code:
        arguments = [each for each in arguments if each != "--fresh"]  # resume its folder
    return code


def _launch(arguments: Sequence[str], processes: int) -> int:
    port = str(_free_port())
    with ExitStack() as stack:
        said = [stack.enter_context(TemporaryFile("w+")) for _ in range(processes)]
        children = [
            subprocess.Popen(
                [sys.executable, "-P", "-m", "kdcore", *arguments],
                env=_environment(rank, processes, port),
                stdin=subprocess.PIPE,  # closes when this process ends, and then they end too
                stderr=said[rank] if rank else None,
                process_group=_GROUP,
            )
            for rank in range(processes)
        ]
        failed = _wait(children)
        return (
            0 if failed is None else _code([child.returncode for child in children], failed, said)
        )


def _code(codes: Sequence[int], failed: int, said: Sequence[IO[str]]) -> int:
    """The exit code if one process failed first; shows the output of others than process 0."""
    again = [rank for rank, code in enumerate(codes) if code == StartAgain.exit_code]
    rank = again[0] if again else failed
    code = codes[rank]
    if code == _LOST:
        return ProcessLost.exit_code
    if code < 0 or code != codes[0]:
        _tell(rank, code, said[rank])
    return code if code > 0 else Interrupted("", known_as(-code)).exit_code


def _tell(rank: int, code: int, said: IO[str]) -> None:
    """Show the output of a process other than the first, and why it printed nothing."""
    killed = (
        ": it was killed, as the system does where its memory runs out. The same command "
        "resumes from the last checkpoint"
    )
    said.seek(0)
    print(f"process {rank} ended with {code}{killed if code == -9 else ''}", file=sys.stderr)
    print(said.read(), file=sys.stderr)


def _environment(rank: int, processes: int, port: str) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // processes)
    found = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        _LAUNCHED: _YET,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return {**os.environ, **found}


def end_with_launcher() -> None:
    """In a process of `launch`: exit as on SIGTERM, with a checkpoint, if the launcher is gone."""
    if os.environ.get(_LAUNCHED) == _YET:
        os.environ[_LAUNCHED] = "begun"  # its own children have another launcher, or none
        Thread(target=_wait_for_end, daemon=True).start()


def code_of_lost() -> int:
    """The exit code after losing another process: our launcher looks for the first failure."""
    return _LOST if os.environ.get(_LAUNCHED) else ProcessLost.exit_code


def _wait_for_end() -> None:
    while os.read(0, 1 << 10):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _passed_on() -> list[signal.Signals]:
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """The rank of the process that failed first; None if all succeed."""

    def pass_on(number: int, frame: object) -> None:
        for child in children:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _passed_on()}
    try:
        while True:
            codes = [child.poll() for child in children]
            failed = [rank for rank, code in enumerate(codes) if code]
            if failed:
                _end(children, _time_to_end(codes))
                return _cause(failed, [child.returncode for child in children])
            if all(code == 0 for code in codes):
                return None
            time.sleep(_POLLING)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cause(failed: Sequence[int], codes: Sequence[int]) -> int:
    """Among failed processes, one that did not lose another; else one that it lost."""
    others = [rank for rank, code in enumerate(codes) if code and rank not in failed]
    return min([*failed, *others], key=lambda rank: codes[rank] == _LOST)


def _time_to_end(codes: Sequence[int | None]) -> float:
    """Seconds for the remaining processes, after these have ended."""
    # A GPU process does not notice that another is gone, and cannot save while it waits.
    hears = os.environ.get("ACCELERATE_USE_CPU", "").lower() in YES
    return _TO_SAVE if StartAgain.exit_code in codes and hears else _TO_END


def _end(children: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Let the others exit on their own for some time, then terminate them."""
    for child in children:
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.terminate()
    for child in children:
        try:
            child.wait(_TO_END)
        except subprocess.TimeoutExpired:
            child.kill()
