"""Signals where no stage trains: they end the command at once, with the documented exit code."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from threading import Event, Thread
from types import FrameType

from kdcore.errors import Interrupted
from kdcore.files import exception_chain
from kdcore.training.signals import SIGNALS, known_as

_GRACE = 2.0  # seconds that Python has to end; libraries may wait in C for minutes


class AtOnce(BaseException):
    """A signal ends what is going on, as ^C does. Typer would make 130 of a KeyboardInterrupt."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


def number_of(error: BaseException) -> int:
    """The signal behind an error, or behind one of those that led to it; 0 for none."""
    for each in exception_chain(error):
        if isinstance(each, AtOnce):
            return each.number
        if isinstance(each, KeyboardInterrupt):
            return signal.SIGINT
    return 0


class AtOnceSignals:
    """While entered, a signal that would kill the process raises AtOnce.

    Where that does not end the process soon, as in a library that waits for another process, it
    ends all the same. `Signals` takes over while a stage trains.
    """

    def __init__(self) -> None:
        self._over = Event()
        self._end: int | None = None  # of the pipe that the watch reads

    def __enter__(self) -> AtOnceSignals:
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler is signal.SIG_DFL or _is_ours(handler):
                signal.signal(number, self._raise)
        if os.name == "posix":
            os.register_at_fork(after_in_child=self._forget)
            reading, self._end = os.pipe()
            os.set_blocking(self._end, False)
            signal.set_wakeup_fd(self._end, warn_on_full_buffer=False)
            Thread(target=self._watch, args=(reading,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._end is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._end)
            self._end = None

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if self._over.is_set():  # the process goes on without us
            signal.signal(known_as(number), signal.SIG_DFL)
            signal.raise_signal(known_as(number))
        raise AtOnce(known_as(number))

    def _watch(self, reading: int) -> None:
        """End the process where a signal has not; the pipe tells of each as it comes."""
        with os.fdopen(reading, "rb", buffering=0) as numbers:
            while number := numbers.read(1):
                handler = signal.getsignal(number[0])
                at_once = _is_ours(handler) or handler is signal.default_int_handler
                if at_once and not self._over.wait(_GRACE):
                    with suppress(OSError):
                        os.write(2, b"kdcore: interrupted\n")
                    os._exit(Interrupted("", known_as(number[0])).exit_code)

    def _forget(self) -> None:
        """A fork is somebody else's, who ends it by signals."""
        if self._end is None:
            return
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            if _is_ours(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)


def _is_ours(handler: object) -> bool:
    return isinstance(getattr(handler, "__self__", None), AtOnceSignals)
