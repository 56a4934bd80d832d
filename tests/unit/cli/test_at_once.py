"""Signals where no stage trains, in processes of their own."""

import os
import signal
import subprocess
import sys

import pytest

from kdcore.cli.at_once import AtOnceSignals
from kdcore.training.signals import Signals

BEGIN = """
import os, signal, sys, threading
from kdcore.cli.at_once import AtOnceSignals
# What began in the background of a shell ignores some.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""


def ended(code, *arguments):
    """The exit code of Python code that meets signals, and what it printed."""
    command = [sys.executable, "-c", BEGIN + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "code"), [("SIGHUP", 129), ("SIGTERM", 143), ("SIGUSR1", 143), ("SIGUSR2", 143)]
)
def test_a_signal_ends_the_process_whatever_stands_around(name, code):
    met = """
with AtOnceSignals():
    try:
        signal.raise_signal(getattr(signal, sys.argv[1]))
    finally:
        print("went on")
"""
    assert ended(met, name) == (code, "kdcore: interrupted\n")


def test_what_was_printed_is_not_lost():
    code = """
with AtOnceSignals():
    print("runs/mine")
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
"""
    assert ended(code) == (143, "runs/mine\nkdcore: interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGHUP", 129), ("SIGINT", 130), ("SIGUSR1", 143)])
def test_a_library_that_waits_in_c_does_not_hold_the_process(name, code):
    """As torch does for other processes: the main thread is in C, and returns from there never."""
    held = """
import ctypes
from pathlib import Path
library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
held = f"{ctypes.addressof(mutex):#x}"

def send():
    while held not in Path(f"/proc/self/task/{os.getpid()}/syscall").read_text():
        pass
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))

with AtOnceSignals():
    library.pthread_mutex_lock(mutex)
    threading.Thread(target=send, daemon=True).start()
    library.pthread_mutex_lock(mutex)
"""
    assert ended(held, name) == (code, "kdcore: interrupted\n")


def test_a_stage_that_trains_is_not_ended(monkeypatch):
    """However long its step takes after the signal: only what would end at once is made to."""
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    ours = AtOnceSignals()

    def watch():
        reading, writing = os.pipe()
        os.write(writing, bytes([signal.SIGTERM]))
        os.close(writing)
        ours._watch(reading)

    before = signal.signal(signal.SIGTERM, ours._end)
    try:
        with Signals():
            watch()
        assert codes == []
        watch()
        assert codes == [143]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_an_interrupt_that_python_ignores_ends_the_training_that_has_begun_since():
    """Python drops exceptions in callbacks of weak references and in __del__."""
    code = """
from kdcore.training.signals import Signals

class Dropped:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

with AtOnceSignals():
    Dropped()
    with Signals() as signals:
        while not signals.take():
            pass
        print("the step ended, and its checkpoint is written")
"""
    code, said = ended(code)
    assert code == 0 and "its checkpoint is written" in said


def test_forks_have_signals_as_a_shell_gives_them():
    """Pools of processes end their workers by SIGTERM; that is not for us to hear."""
    code = """
with AtOnceSignals():
    child = os.fork()
    if child == 0:
        signal.raise_signal(signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status))
"""
    assert ended(code) == (0, "-15\n")


def test_afterwards_a_signal_ends_the_process():
    code = """
with AtOnceSignals():
    pass
signal.raise_signal(signal.SIGUSR1)
print("went on")
"""
    assert ended(code) == (143, "kdcore: interrupted\n")
