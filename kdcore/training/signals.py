"""Signals that end a run after its step: ^C, SIGTERM, SLURM's and submitit's, a lost terminal."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator


_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]  # Windows: two
_KNOWN_AS = {name: signal.SIGTERM for name in SIGNALS if name.name.startswith("SIGUSR")}
_EVERY = 10  # steps between agreements where asking makes the host wait for a GPU


class Signals:
    """While entered, the first signal is noted; a second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self._got = 0
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

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._got and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._got = _KNOWN_AS.get(number, number)

    def agreed(self, accelerator: Accelerator) -> int:
        """The signal that some process got, known to all of them; 0 for none."""
        if accelerator.num_processes == 1:
            return self._got
        self._asked += 1
        if accelerator.device.type == "cuda" and self._asked % _EVERY:
            return 0
        got = torch.tensor([self._got], device=accelerator.device)
        return int(accelerator.gather(got).max())
