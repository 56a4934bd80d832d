"""Processes take turns without a collective, which would give up after its time-out."""

from threading import Event, Thread
from types import SimpleNamespace

import pytest
from torch.distributed import HashStore

from kdcore import distributed
from kdcore.distributed import disks, naming_lost
from kdcore.distributed.disks import main_first
from kdcore.errors import PluginError, ProcessLost
from kdcore.runs import runner


@pytest.fixture(autouse=True)
def store(monkeypatch):
    made = HashStore()
    for module in (distributed, disks):
        monkeypatch.setattr(module, "process_store", lambda: made)
    return made


def process(rank, processes=2):
    """Of an accelerator only who it is: it has no barrier."""
    return SimpleNamespace(num_processes=processes, process_index=rank, is_main_process=rank == 0)


def test_the_main_process_is_first_at_every_turn():
    did, one_turn = [], Event()

    def others():
        for turn in range(2):
            with main_first(process(1)):
                did.append((turn, 1))
            one_turn.set()

    other = Thread(target=others)
    with main_first(process(0)):
        other.start()
        did.append((0, 0))
    with main_first(process(0)):
        one_turn.wait()
        did.append((1, 0))
    other.join()
    assert did == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_others_continue_where_the_main_process_fails():
    did = []

    def others():
        with main_first(process(1)):
            did.append("went on")

    other = Thread(target=others)
    other.start()
    with pytest.raises(ValueError), main_first(process(0)):
        raise ValueError
    other.join()
    assert did == ["went on"]


def test_a_single_process_does_not_wait(store):
    with main_first(process(0, processes=1)):
        pass
    assert store.num_keys() == 0


SAYS = [
    "[/pytorch/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:24483. This",
    "[pair.cc:534] Read error [127.0.0.1]:4711: Connection reset by peer",
    "failed to recv, got 0 bytes. Connection was likely closed. Did the remote server crash?",
    "NCCL error: remote process exited or there was a network error, NCCL version 2.27",
    "[unbound_buffer.cc:81] Timed out waiting 30000ms for recv operation to complete",
]


@pytest.mark.parametrize("said", SAYS)
def test_a_process_that_is_gone_is_no_bug(monkeypatch, said):
    monkeypatch.setattr(distributed, "_is_among_others", lambda: True)
    ended = pytest.raises(ProcessLost, match="another process of the run has ended")
    with ended as caught, naming_lost():
        raise PluginError("the loss raised RuntimeError") from RuntimeError(said)
    assert caught.value.exit_code == 1


def test_a_process_that_is_gone_leaves_no_traceback_in_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "_is_among_others", lambda: True)
    with pytest.raises(ProcessLost), runner._explained(tmp_path):
        raise RuntimeError(SAYS[0])
    assert not [*tmp_path.iterdir()]


def test_other_errors_and_those_of_a_single_process_stay(monkeypatch):
    for among, error in [(True, "shapes"), (False, SAYS[0])]:
        monkeypatch.setattr(distributed, "_is_among_others", lambda among=among: among)
        with (
            pytest.raises(RuntimeError, match=error[:6].replace("[", r"\[")),
            naming_lost(),
        ):
            raise RuntimeError(error)
