import signal
from types import SimpleNamespace

import pytest
import torch

from kdcore.training.signals import Signals

ALONE = SimpleNamespace(num_processes=1)


@pytest.mark.parametrize(
    ("number", "known_as"),
    [
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGUSR1, signal.SIGTERM),
        (signal.SIGUSR2, signal.SIGTERM),
        (signal.SIGHUP, signal.SIGHUP),
    ],
)
def test_a_signal_is_noted(number, known_as):
    with Signals() as signals:
        assert signals.agreed(ALONE) == 0
        signal.raise_signal(number)
        assert signals.agreed(ALONE) == known_as


def test_a_second_interrupt_ends_at_once():
    with pytest.raises(KeyboardInterrupt), Signals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")


def test_a_second_polite_signal_does_not():
    with Signals() as signals:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert signals.agreed(ALONE) == signal.SIGTERM


def test_what_signals_did_before_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with Signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def processes(device, others):
    """Two processes, of which the other one got these signals, one after another."""
    got = iter(others)

    def gather(mine):
        return torch.cat([mine, torch.tensor([next(got)])])

    return SimpleNamespace(num_processes=2, device=torch.device(device), gather=gather)


def test_processes_agree():
    signals = Signals()
    accelerator = processes("cpu", [0, signal.SIGTERM])
    assert signals.agreed(accelerator) == 0
    assert signals.agreed(accelerator) == signal.SIGTERM


def test_nohup_is_obeyed():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.agreed(ALONE) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def met():
    """What is done about SIGTERM outside of training."""
    found = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: found.append(number))
    yield found
    signal.signal(signal.SIGTERM, before)


def test_an_unhandled_signal_is_not_lost(met):
    with Signals():
        signal.raise_signal(signal.SIGUSR2)
    assert met == [signal.SIGTERM]


def test_a_handled_signal_is_not_raised_again(met):
    with Signals() as signals:
        signal.raise_signal(signal.SIGUSR2)
        assert signals.agreed(ALONE) == signal.SIGTERM
    assert met == []


def test_asking_now_does_not_wait_for_the_tenth_step():
    signals = Signals()
    signals._got = signal.SIGTERM
    assert signals.agreed(processes("cuda", [])) == 0
    accelerator = processes("cpu", [0])
    accelerator.device = SimpleNamespace(type="cuda")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "tensor", lambda values, device=None: torch.as_tensor(values))
        assert signals.agreed(accelerator, now=True) == signal.SIGTERM
