"""Signals outside training: they end the command at once, with the documented exit code."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from threading import Event, RLock, Thread
from types import FrameType

from kdcore.errors import Interrupted
from kdcore.training.signals import SIGNALS, known_as

_GRACE = 2.0  # seconds in which ^C must end the process; C code of libraries may block for minutes


class AtOnceSignals:
    """A context in which a signal that would kill the process ends it with kdcore's exit code.

    Raises nothing: libraries turn exceptions inside their C code into other errors, and a run can
    be stopped at any moment. A thread handles the signal if the main thread is blocked in C.
    `Signals` takes over while a stage trains; ^C raises KeyboardInterrupt, and soon ends the
    process.
    """

    def __init__(self) -> None:
        self.interrupted = False  # by ^C, whatever error a library made of it
        self._over, self._ending = Event(), RLock()
        self._pipe: int | None = None  # receives each signal as a byte

    def __enter__(self) -> AtOnceSignals:
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler is signal.default_int_handler:
                signal.signal(number, self._interrupt)
            elif handler is signal.SIG_DFL or _is_ours(handler):
                signal.signal(number, self._end)
        if os.name == "posix":
            os.register_at_fork(after_in_child=self._forget)
            reading, self._pipe = os.pipe()
            os.set_blocking(self._pipe, False)
            signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
            Thread(target=self._watch, args=(reading,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if signal.getsignal(signal.SIGINT) == self._interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._pipe is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._pipe)
            self._pipe = None

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        raise KeyboardInterrupt

    def _end(self, number: int, frame: FrameType | None = None) -> None:
        self._ending.acquire()  # Blocks while the other thread ends the process.
        with suppress(Exception):
            sys.stdout.flush()
        with suppress(OSError):
            os.write(2, b"kdcore: interrupted\n")
        os._exit(Interrupted("", known_as(number)).exit_code)

    def _watch(self, reading: int) -> None:
        """End the process if the main thread is blocked, or Python dropped a KeyboardInterrupt."""
        with os.fdopen(reading, "rb", buffering=0) as numbers:
            while number := numbers.read(1):
                handler = signal.getsignal(number[0])
                raised = self.interrupted and number[0] == signal.SIGINT
                soon = (raised or handler == self._interrupt) and not self._over.wait(_GRACE)
                if soon and signal.getsignal(number[0]) != self._interrupt:  # a stage trains now
                    self.interrupted = False
                    signal.raise_signal(number[0])
                elif soon or handler == self._end:
                    self._end(number[0])

    def _forget(self) -> None:
        """A forked process leaves signals to its owner."""
        if self._pipe is None:
            return
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            if _is_ours(signal.getsignal(number)):
                own = number == signal.SIGINT
                signal.signal(number, signal.default_int_handler if own else signal.SIG_DFL)


def _is_ours(handler: object) -> bool:
    return isinstance(getattr(handler, "__self__", None), AtOnceSignals)
