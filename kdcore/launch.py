"""`--processes N`: the same command in N processes that find each other through the environment."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `python -m kdcore ARGUMENTS` in N processes; the first failure ends all of them.

    Returns the exit code of the first that failed, or 0.
    """
    port = str(_free_port())
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "kdcore", *arguments], env=_environment(rank, processes, port)
        )
        for rank in range(processes)
    ]
    return _wait(children)


def _environment(rank: int, processes: int, port: str) -> dict[str, str]:
    import torch

    found = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    if torch.cuda.device_count() < processes:
        found["ACCELERATE_USE_CPU"] = "true"
    return {**os.environ, **found}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int:
    def pass_on(number: int, frame: object) -> None:
        for child in children:
            child.send_signal(number)

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        while True:
            codes = [child.poll() for child in children]
            failed = [code for code in codes if code]
            if failed:
                _end(children)
                return failed[0] if failed[0] > 0 else 128 - failed[0]
            if all(code == 0 for code in codes):
                return 0
            time.sleep(0.1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Give the others a moment to end by themselves, then end them."""
    for child in children:
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.terminate()
    for child in children:
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
