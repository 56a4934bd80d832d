import errno
import json
import random

import engine
import given
import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from kdcore import files
from kdcore.files import is_full, machine_error
from kdcore.runs.folder import refused_by_machine
from kdcore.training.checkpoints import saving
from kdcore.training.checkpoints.folders import sums_of
from kdcore.training.checkpoints.saving import Checkpoints, trained

pytestmark = pytest.mark.slow


def parts(folder, seed=0, keep=2, optimizer=torch.optim.AdamW, accelerator=None):
    """Checkpoints of a model that has taken two steps."""
    model = given.model(seed=seed)
    made = optimizer(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        made.step()
    return Checkpoints(folder, accelerator or engine.Alone(), model, made, keep=keep)


def assert_same(one, other):
    for name, tensor in trained(one.model).items():
        assert torch.equal(tensor, trained(other.model)[name]), name
    states = [each.optimizer.state_dict() for each in (one, other)]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for index, entries in states[0]["state"].items():
        for name, value in entries.items():
            assert torch.equal(
                torch.as_tensor(value), torch.as_tensor(states[1]["state"][index][name])
            )


def numbers():
    """One from each stream that a plugin may draw from."""
    drawn = [torch.rand(1).item(), random.random(), np.random.rand()]
    return [*drawn, random.gauss(), np.random.randn()]


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adafactor])
def test_everything_comes_back_exactly(tmp_path, optimizer):
    numbers()  # the second normal number of a pair is pending
    saved = parts(tmp_path, seed=0, optimizer=optimizer)
    path = saved.save(7, {"tokens": 123, "micro_batch": 4})
    wanted = numbers()
    loaded = parts(tmp_path, seed=1, optimizer=optimizer)
    numbers()
    assert loaded.newest() == path == tmp_path / "step-7"
    assert loaded.load(path) == {"step": 7, "tokens": 123, "micro_batch": 4}
    assert numbers() == wanted
    assert_same(saved, loaded)


def test_the_same_steps_follow(tmp_path):
    """An optimizer that comes back goes on as if nothing had been."""
    saved, loaded = parts(tmp_path, seed=0), parts(tmp_path, seed=1)
    loaded.load(saved.save(2, {}))
    for each in (saved, loaded):
        for parameter in each.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        each.optimizer.step()
    assert_same(saved, loaded)


def test_the_learning_rate_is_not_kept(tmp_path):
    """It is a function of the step."""
    saved, loaded = parts(tmp_path), parts(tmp_path, seed=1)
    path = saved.save(2, {})
    loaded.optimizer.param_groups[0]["lr"] = 0.5
    loaded.load(path)
    assert loaded.optimizer.param_groups[0]["lr"] == 0.5


def test_tied_weights_are_written_once_and_frozen_ones_not_at_all(tmp_path):
    made = parts(tmp_path)
    model = made.model = given.model(tie_word_embeddings=True)
    model.model.norm.weight.requires_grad_(False)
    names = set(trained(model))
    assert "model.embed_tokens.weight" in names
    assert not names & {"lm_head.weight", "model.norm.weight"}


def test_weights_in_any_memory_layout_come_back(tmp_path):
    saved, loaded = parts(tmp_path), parts(tmp_path, seed=1)
    for each, seed in ((saved, 0), (loaded, 1)):
        torch.manual_seed(seed)
        each.model = nn.Linear(3, 5)
        each.model.weight.data = torch.randn(3, 5).t()
    loaded.load(saved.save(1, {}))
    assert torch.equal(saved.model.weight, loaded.model.weight)


def test_the_loss_scaler_comes_back(tmp_path):
    accelerators = [engine.Alone(), engine.Alone()]
    for accelerator, scale in zip(accelerators, (64.0, 2.0), strict=True):
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        accelerator.scaler._lazy_init_scale_growth_tracker(torch.device("cpu"))
    saved, loaded = (parts(tmp_path, accelerator=each) for each in accelerators)
    loaded.load(saved.save(1, {}))
    assert accelerators[1].scaler.get_scale() == 64.0


def test_the_newest_are_kept(tmp_path):
    made = parts(tmp_path, keep=2)
    for step in (5, 9, 10):
        made.save(step, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-9"]
    assert made.newest().name == "step-10"


def test_a_step_may_be_saved_again(tmp_path):
    made = parts(tmp_path)
    made.save(5, {"tokens": 1})
    assert made.load(made.save(5, {"tokens": 2}))["tokens"] == 2


def test_without_checkpoints_there_is_no_newest(tmp_path):
    assert parts(tmp_path / "nothing").newest() is None


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncate, flip, lambda path: path.unlink()])
@pytest.mark.parametrize(
    "name",
    [
        "student.safetensors",
        "optimizer.safetensors",
        "random-0.safetensors",
        "state.json",
        "manifest.json",
    ],
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog, name, damage):
    made = parts(tmp_path)
    before = made.save(5, {})
    after = made.save(6, {})
    damage(after / name)
    assert made.newest() == before
    assert "checkpoint step-6 is damaged" in caplog.text


def test_the_manifest_knows_every_file(tmp_path):
    path = parts(tmp_path).save(5, {})
    written = {each.name for each in path.iterdir()} - {"manifest.json"}
    assert set(json.loads((path / "manifest.json").read_text())) == written


def test_a_checkpoint_behind_a_damaged_one_is_not_dropped_for_it(tmp_path):
    """What is damaged does not count among those that are kept."""
    made = parts(tmp_path, keep=1)
    made.save(5, {})
    truncate(made.save(9, {}) / "state.json")
    assert made.newest() is None
    made.save(7, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-7"]
    assert made.newest().name == "step-7"


def test_leftovers_of_an_interrupted_run_are_deleted_when_it_resumes(tmp_path):
    made = parts(tmp_path, keep=9)
    for step in (5, 9, 10):
        made.save(step, {})
    truncate(made.folder / "step-10" / "state.json")
    made.keep = 1
    made.load(made.newest())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-9"]


def test_where_no_checkpoint_is_whole_that_is_said(tmp_path, caplog):
    made = parts(tmp_path)
    truncate(made.save(5, {}) / "state.json")
    truncate(made.save(6, {}) / "state.json")
    assert made.newest() is None
    assert "step-6 is damaged" in caplog.text and "the one before is used" in caplog.text
    assert "step-5 is damaged" in caplog.text and "the run begins again" in caplog.text


def test_the_sums_of_a_process_come_back(tmp_path):
    wanted = {"terms": torch.tensor([0.1, 0.2]), "counts": torch.tensor([3.0], dtype=torch.float64)}
    (found,) = sums_of(parts(tmp_path).save(5, {}, wanted))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert sums_of(tmp_path / "step-5-of-an-earlier-version") == []


WRITES = 4 + 7  # tensors, and the syncs before the checkpoint is in its place


def failing(monkeypatch, call, error):
    """The n-th write raises."""
    calls = 0

    def counting(inner):
        def write(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == call:
                raise error
            return inner(*arguments, **options)

        return write

    monkeypatch.setattr(saving, "save_file", counting(saving.save_file))
    monkeypatch.setattr(files, "sync", counting(files.sync))


@pytest.mark.parametrize("call", range(1, WRITES + 1))
def test_an_interrupted_write_leaves_no_half_checkpoint(tmp_path, monkeypatch, call):
    """Whichever write is the last one."""
    made = parts(tmp_path)
    before = made.save(5, {})
    with monkeypatch.context() as patched:
        failing(patched, call, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            made.save(6, {})
    assert made.newest() == before
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-5"]
    made.save(7, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-5", "step-7"]


FULL = [
    OSError(errno.ENOSPC, "No space left on device", "student.safetensors"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("call", range(1, WRITES + 1))
@pytest.mark.parametrize("error", FULL, ids=["system", "safetensors"])
def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_else(
    tmp_path, monkeypatch, call, error
):
    made = parts(tmp_path / "checkpoints")
    before = made.save(5, {})
    with monkeypatch.context() as patched:
        failing(patched, call, error)
        with pytest.raises(type(error)) as caught:
            made.save(6, {})
    assert made.newest() == before
    assert [path.name for path in made.folder.iterdir()] == ["step-5"]
    assert is_full(caught.value)
    said = str(refused_by_machine(machine_error(caught.value), tmp_path))
    assert "No space left on device" in said and "step-5 is kept" in said


class Rank(engine.Alone):
    """One of two processes; nobody answers when it waits."""

    num_processes = 2

    def __init__(self, rank):
        super().__init__()
        self.process_index, self.is_main_process = rank, rank == 0

    def wait_for_everyone(self):
        raise AssertionError("the others are gone")


def leave_one_by_one(folder, *ranks):
    """Each saves alone; what it draws next, by its number."""
    drawn = {}
    for rank in ranks:
        torch.manual_seed(rank)
        sums = {"terms": torch.tensor([float(rank)])}
        parts(folder, accelerator=Rank(rank)).save_alone(5, {"tokens": 1}, sums)
        drawn[rank] = numbers()
    return drawn


@pytest.mark.parametrize("ranks", [(0, 1), (1, 0)])
def test_processes_that_leave_one_by_one_lose_nothing(tmp_path, ranks):
    drawn = leave_one_by_one(tmp_path, *ranks)
    for rank in ranks:
        made = parts(tmp_path, seed=3, accelerator=Rank(rank))
        assert made.newest() == tmp_path / "step-5"
        assert made.load(made.newest()) == {"tokens": 1, "step": 5}
        assert numbers() == drawn[rank]
        assert_same(made, parts(tmp_path))
    assert [float(each["terms"]) for each in sums_of(tmp_path / "step-5")] == [0, 1]


def test_a_process_that_had_no_time_leaves_no_wrong_sums(tmp_path):
    leave_one_by_one(tmp_path, 1)
    assert sums_of(tmp_path / "step-5") == []
    made = parts(tmp_path, accelerator=Rank(0))
    wanted = torch.get_rng_state()
    made.load(tmp_path / "step-5")
    assert torch.equal(torch.get_rng_state(), wanted)


def test_state_next_to_a_checkpoint_is_verified_and_deleted_with_it(tmp_path):
    leave_one_by_one(tmp_path, 0, 1)
    own_state = tmp_path / ".step-5.process-1"
    truncate(own_state / "sums-1.safetensors")
    assert sums_of(tmp_path / "step-5") == []
    made = parts(tmp_path, keep=1)
    made.save(6, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-6"]
