"""Processes find out who shares a disk, and take turns on each; what they lack is refused."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import HashStore

from kdcore import distributed
from kdcore.distributed import disks, heard
from kdcore.distributed.disks import SHARED, Disk, bring, disk_of, leaders_first
from kdcore.errors import ProcessLost, RunError, UsageError
from kdcore.runs import runner
from kdcore.training.checkpoints.saving import Checkpoints


@pytest.fixture(autouse=True)
def store(monkeypatch):
    made = HashStore()
    monkeypatch.setattr(disks, "process_store", lambda: made)
    monkeypatch.setattr(disks, "start_beating", lambda accelerator: None)
    return made


def process(rank, processes=3):
    return SimpleNamespace(
        num_processes=processes, process_index=rank, is_main_process=rank == 0, device="cpu"
    )


def together(work, processes=3):
    """What each process returns, by rank."""
    with ThreadPoolExecutor(processes) as pool:
        found = [pool.submit(work, rank) for rank in range(processes)]
    return [each.result() for each in found]


def test_processes_that_see_the_same_files_share_a_disk(tmp_path):
    found = together(lambda rank: disk_of(process(rank), tmp_path / "runs"))
    assert found == [SHARED] * 3
    assert not [*(tmp_path / "runs").iterdir()]


def test_each_other_disk_has_a_leader(tmp_path):
    places = [tmp_path / name for name in ("one", "two", "two")]
    found = together(lambda rank: disk_of(process(rank), places[rank]))
    assert found == [Disk(0, (0, 1)), Disk(1, (0, 1)), Disk(1, (0, 1))]
    assert [each.is_first for each in found] == [True, False, False]
    assert not found[0].is_shared


def test_a_process_that_cannot_write_is_alone(tmp_path):
    (tmp_path / "file").touch()
    places = [tmp_path, tmp_path, tmp_path / "file"]
    found = together(lambda rank: disk_of(process(rank), places[rank]))
    assert [each.leader for each in found] == [0, 0, 2]


def test_leaders_work_at_the_same_time_and_before_the_others():
    both, did = Barrier(2), []
    leaders = [0, 1, 1]

    def work(rank):
        with leaders_first(process(rank), Disk(leaders[rank], (0, 1))):
            if rank < 2:
                both.wait(60)  # passes only if both leaders are within
            did.append(rank)

    together(work)
    assert sorted(did[:2]) == [0, 1] and did[2] == 2


def test_others_continue_where_a_leader_fails():
    did = []

    def work(rank):
        with leaders_first(process(rank, 2), SHARED):
            if rank == 0:
                raise ValueError
            did.append(rank)

    with pytest.raises(ValueError):
        together(work, 2)
    assert did == [1]


def test_one_process_needs_no_store(store, tmp_path):
    assert disk_of(process(0, 1), tmp_path) == SHARED
    with leaders_first(process(0, 1), SHARED):
        pass
    assert store.num_keys() == 0


@pytest.fixture
def time(monkeypatch):
    """Passes only when someone sleeps; `at` has what happens then."""
    made = SimpleNamespace(now=0.0, at={})

    def sleep(seconds):
        before, made.now = made.now, made.now + seconds
        for when, deed in made.at.items():
            if before < when <= made.now:
                deed()

    monkeypatch.setattr(distributed.time, "sleep", sleep)
    return made


def test_a_silent_process_is_lost(store, time):
    with pytest.raises(ProcessLost, match="process 1 has been silent for 45 seconds"):
        heard(store, "key", 1)
    assert 45 < time.now < 46


def test_a_process_that_beats_may_take_its_time(store, time):
    time.at = {n: lambda: store.add("kdcore/beats/1", 1) for n in range(30, 600, 30)}
    time.at[600] = lambda: store.set("key", b"done")
    assert heard(store, "key", 1) == "done"
    assert time.now >= 600


@pytest.fixture
def sent(monkeypatch):
    """Collectives of which each process sees both sides: what the first sends, and all say."""
    made = SimpleNamespace(values=[], parts=[], all=[])

    def of_first(accelerator, value):
        made.values.append(value)
        return made.values[0] if accelerator.is_main_process else made.first

    monkeypatch.setattr(disks, "of_first", of_first)
    monkeypatch.setattr(disks, "of_all", lambda accelerator, value: [False])
    return made


def brought(sent, monkeypatch, source, target):
    """Copies by one process after the other, each playing its part."""
    import accelerate.utils

    first, second = process(0, 2), process(1, 2)
    second.wait_for_everyone = first.wait_for_everyone = lambda: None
    monkeypatch.setattr(accelerate.utils, "broadcast", lambda part: sent.parts.append(part) or part)
    bring(first, Disk(0, (0, 1)), source)
    sent.first, parts = sent.values[0], iter(sent.parts)
    monkeypatch.setattr(accelerate.utils, "broadcast", lambda part: next(parts))
    bring(second, Disk(1, (0, 1)), target)


def test_a_folder_is_brought_whole_and_replaces_what_was_there(sent, monkeypatch, tmp_path):
    monkeypatch.setattr(disks, "_PART", 3)
    source, target = tmp_path / "first" / "final", tmp_path / "second" / "final"
    for path in (source / "inner", target):
        path.mkdir(parents=True)
    (source / "a").write_bytes(b"12345678")
    (source / "inner" / "b").write_bytes(b"")
    (target / "old").touch()
    brought(sent, monkeypatch, source, target)
    assert {str(path.relative_to(target)) for path in target.rglob("*")} == {
        *("a", "inner", "inner/b")
    }
    assert (target / "a").read_bytes() == b"12345678"
    assert not target.with_name(".final.brought").exists()
    assert len(sent.parts) == 3


def test_a_file_is_brought_and_a_missing_one_removed(sent, monkeypatch, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    source, target = tmp_path / "a" / "x.toml", tmp_path / "b" / "x.toml"
    source.write_text("new")
    target.write_text("old")
    brought(sent, monkeypatch, source, target)
    assert target.read_text() == "new"
    source.unlink()
    sent.values.clear()
    sent.parts.clear()
    brought(sent, monkeypatch, source, target)
    assert not target.exists()


def test_nothing_is_brought_to_a_shared_disk(tmp_path):
    bring(process(0), SHARED, tmp_path)


def test_a_checkpoint_on_another_node_s_disk_is_not_left_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "of_all", lambda accelerator, step: [step, 0, 40])
    (tmp_path / "checkpoints" / "step-8").mkdir(parents=True)
    apart = Disk(0, (0, 2))
    said = r"process 2 has a checkpoint of step 40 in .* its newest is of step 8.*--node-rank 0"
    with pytest.raises(RunError, match=said):
        runner._refuse_checkpoints_elsewhere(process(0), apart, tmp_path)
    with pytest.raises(RunError, match="it has none"):
        runner._refuse_checkpoints_elsewhere(process(0), apart, tmp_path / "other")
    runner._refuse_checkpoints_elsewhere(process(0), SHARED, tmp_path)
    monkeypatch.setattr(runner, "of_all", lambda accelerator, step: [step, 0, 8])
    runner._refuse_checkpoints_elsewhere(process(0), apart, tmp_path)


def test_other_data_on_another_node_is_refused(monkeypatch):
    run = SimpleNamespace(disk=Disk(0, (0, 2)))
    found = {"data": "a1", "versions": "torch 2"}
    monkeypatch.setattr(runner, "_fingerprints", lambda run: found)
    monkeypatch.setattr(
        runner, "of_all", lambda accelerator, mine: [mine, mine, {**mine, "data": "b2"}]
    )
    with pytest.raises(UsageError, match="process 2 has another data than the first process: b2"):
        runner._compare_nodes(process(0), run)
    run.disk = SHARED
    runner._compare_nodes(process(0), run)


def test_a_checkpoint_has_the_state_of_processes_on_other_disks(monkeypatch, tmp_path):
    from kdcore.training.checkpoints import saving
    from kdcore.training.checkpoints.folders import damage

    model = torch.nn.Linear(2, 2)
    first = SimpleNamespace(
        num_processes=2,
        process_index=0,
        is_main_process=True,
        scaler=None,
        wait_for_everyone=lambda: None,
    )
    theirs = {"random-1.safetensors": b"r", "sums-1.safetensors": b"s"}
    monkeypatch.setattr(saving, "of_all", lambda accelerator, mine: [mine, theirs])
    made = Checkpoints(
        tmp_path, first, model, torch.optim.SGD(model.parameters()), keep=1, disk=Disk(0, (0, 1))
    )
    path = made.save(3, {})
    assert {f"{name}-{rank}.safetensors" for name in ("random", "sums") for rank in "01"} <= {
        each.name for each in path.iterdir()
    }
    assert (path / "random-1.safetensors").read_bytes() == b"r"
    assert damage(path) is None


def test_a_process_on_another_disk_writes_no_checkpoint_alone(tmp_path):
    model = torch.nn.Linear(2, 2)
    second = SimpleNamespace(num_processes=2, process_index=1, is_main_process=False, scaler=None)
    made = Checkpoints(
        tmp_path, second, model, torch.optim.SGD(model.parameters()), keep=1, disk=Disk(1, (0, 1))
    )
    made.save_alone(3, {})
    assert [path.name for path in tmp_path.iterdir()] == [".step-3.process-1"]
