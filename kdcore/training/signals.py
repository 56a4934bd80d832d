"""Signals that end a run: ^C, SIGTERM, those of SLURM and submitit, a lost terminal.

During training they end the stage after its step, with a checkpoint. Otherwise they end the command
at once (`kdcore.cli.at_once`).
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from kdcore.interrupts import ask_to_stop

if TYPE_CHECKING:
    from accelerate import Accelerator


_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]  # Windows has two
_USERS = [number for number in SIGNALS if number.name.startswith("SIGUSR")]
_EVERY = 10  # steps between agreements, where asking syncs a GPU


def known_as(number: int) -> int:
    """The signal that determines the exit code: those of SLURM and submitit count as SIGTERM."""
    return signal.SIGTERM if number in _USERS else number


class Signals:
    """A context that records the first signal; a second SIGINT ends the process at once.

    A signal that was not taken is raised again at the end.
    """

    def __init__(self) -> None:
        self._got = self._handled = 0
        self._asked = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        ask_to_stop(False)
        for number in SIGNALS:
            if signal.getsignal(number) is signal.SIG_IGN:  # as set by nohup
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
        ask_to_stop(False)
        if self._got != self._handled and error is None:
            signal.raise_signal(self._got)

    def take(self) -> int:
        """The signal that this process got, marked as handled; 0 for none."""
        self._handled = self._got
        return self._got

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._got and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._got = known_as(number)
        ask_to_stop(True)

    def agreed(self, accelerator: Accelerator, *, now: bool = False) -> int:
        """A signal that any process got, agreed by all; 0 for none.

        Where agreeing syncs a GPU, that happens only every few steps, or with `now`.
        """
        if accelerator.num_processes == 1:
            self._handled = self._got
            return self._got
        self._asked += 1
        if accelerator.device.type == "cuda" and self._asked % _EVERY and not now:
            return 0
        import torch

        got = torch.tensor([self._got], device=accelerator.device)
        self._handled = int(accelerator.gather(got).max())
        return self._handled
