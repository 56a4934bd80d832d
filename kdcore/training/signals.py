"""Signals that end a run: ^C, SIGTERM, SLURM's and submitit's, a lost terminal.

While a stage trains they end it after its step, with a checkpoint. Otherwise they end the command
at once (`kdcore.cli.at_once`).
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator


_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]  # Windows: two
_USERS = [number for number in SIGNALS if number.name.startswith("SIGUSR")]
_EVERY = 10  # steps between agreements where asking makes the host wait for a GPU


def known_as(number: int) -> int:
    """The signal whose exit code it has: those of SLURM and submitit end a run as SIGTERM does."""
    return signal.SIGTERM if number in _USERS else number


class Signals:
    """While entered, the first signal is noted; a second SIGINT ends the process at once.

    One that nobody has been told of is raised again at the end.
    """

    def __init__(self) -> None:
        self._got = self._told = 0
        self._asked = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in SIGNALS:
            if signal.getsignal(number) is signal.SIG_IGN:  # as nohup asks for
                continue
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if self._got != self._told and error is None:
            signal.raise_signal(self._got)

    def take(self) -> int:
        """The signal that came to this process, told from now on; 0 for none."""
        self._told = self._got
        return self._got

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._got and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._got = known_as(number)

    def agreed(self, accelerator: Accelerator, *, now: bool = False) -> int:
        """The signal that some process got, known to all of them; 0 for none.

        Where asking makes the host wait for a GPU, that is only done now and then, or `now`.
        """
        if accelerator.num_processes == 1:
            self._told = self._got
            return self._got
        self._asked += 1
        if accelerator.device.type == "cuda" and self._asked % _EVERY and not now:
            return 0
        import torch

        got = torch.tensor([self._got], device=accelerator.device)
        self._told = int(accelerator.gather(got).max())
        return self._told
