"""Members that take turns on the device say the same, and never lie there together."""

from types import SimpleNamespace

import kdcore_hf
import pytest
import tiny
import torch
from kdcore_ensemble import Ensemble
from kdcore_hf import HfTeacher
from kdcore_routed import Routed

import kdcore
from kdcore import RecipeError, read, read_nll
from kdcore.analysis.models import TeacherModel, in_turn
from kdcore.testing.fakes import TableTeacher, make_batch

TOKENIZER = tiny.byte_tokenizer()
BATCH = make_batch([[3, 1, 4, 1, 5], [9, 2, 6]])
RUN = SimpleNamespace(device=torch.device("cpu"))


@pytest.fixture
def folders(tmp_path):
    found = [tmp_path / name for name in ("one", "two", "three")]
    for folder, kind in zip(found, ("llama", "gpt2", "qwen2"), strict=True):
        tiny.save(folder, kind, tokenizer=TOKENIZER)
    return [str(each) for each in found]


@pytest.fixture
def present(monkeypatch):
    """How many trunks are on the device, each time that one comes or leaves."""
    here, seen = set(), []
    come, leave = kdcore_hf.Trunk.come, kdcore_hf.Trunk.leave

    def coming(trunk):
        here.add(id(trunk))
        seen.append(len(here))
        come(trunk)

    def leaving(trunk):
        here.discard(id(trunk))
        leave(trunk)

    monkeypatch.setattr(kdcore_hf.Trunk, "come", coming)
    monkeypatch.setattr(kdcore_hf.Trunk, "leave", leaving)
    return seen


def loaded(made):
    made.load(RUN)
    for member in made.members:
        member.load(RUN)
    return made


def members(folders):
    return [HfTeacher(model=folder) for folder in folders]


def weights(teacher):
    return sum(one.numel() for one in teacher._model.model.parameters())


@pytest.mark.parametrize("average", ["logits", "probs"])
def test_an_ensemble_of_which_one_is_there_says_the_same(folders, present, average):
    both = [
        loaded(Ensemble(members=members(folders), average=average, keep_loaded=keep))
        for keep in ("all", "one")
    ]
    whole, turns = (read(each, BATCH)(BATCH.valid) for each in both)
    assert torch.equal(whole, turns)
    assert {*present} == {1}
    for kept, moved in zip(*(each.members for each in both), strict=True):
        head = kept._model.weight.numel()
        assert head <= weights(moved) <= head + 16 < weights(kept)


def test_a_route_of_which_one_is_there_says_the_same(folders, present):
    wheres = [{"source": "nowhere"}, {"source": "data"}, None]
    both = [
        loaded(Routed(members=members(folders), where=wheres, keep_loaded=keep))
        for keep in ("all", "one")
    ]
    whole, turns = (read(each, BATCH)(BATCH.valid) for each in both)
    assert torch.equal(whole, turns)
    labels = BATCH.labels[BATCH.valid]
    whole, turns = (read_nll(each, BATCH)(BATCH.valid, labels) for each in both)
    assert torch.equal(whole, turns)
    assert {*present} == {1}


def recipe(folders, keep, **more):
    each = [{"use": "hf", "model": folder} for folder in folders]
    config = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32}
    return {
        "name": "turns",
        "student": {"config": config | {"num_hidden_layers": 1, "num_attention_heads": 2}},
        "tokenizer": {"use": "hf", "model": folders[0]},
        "data": {"use": "stories", "block": 32, "stories": 12},
        "teacher": {"use": "ensemble", "members": each, "keep_loaded": keep},
        "loss": [{"use": "kl", "temperature": 2.0}],
        "train": {"lr": 1e-2, "steps": 3, "batch": 2, "log_every": 1},
    } | more


@pytest.mark.slow
def test_a_run_is_the_same_run(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = kdcore.run(recipe(folders, "all"), out="a")
    other = kdcore.run(recipe(folders, "one"), out="b")
    losses = [[line["loss"] for line in each.metrics] for each in (one, other)]
    assert losses[0] == losses[1]
    assert one.folder.name == other.folder.name


def test_members_that_cannot_leave_are_an_error(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = recipe(folders, "one")
    made["teacher"]["members"][1] = {"use": "ema"}
    with pytest.raises(RecipeError, match="the member 'ema' cannot leave the device"):
        kdcore.check(made)
    assert list(Ensemble(members=[TableTeacher()], keep_loaded="one").faults(None))
    assert list(Routed(members=[TableTeacher()], keep_loaded="one").faults(None))
    assert not HfTeacher(model="m", quantise="4bit").moves()
    writing = [Ensemble(members=members(folders), keep_loaded=keep) for keep in ("all", "one")]
    assert [each.writes() for each in writing] == [True, False]


def test_a_plan_counts_one_trunk_and_all_heads():
    made = [tiny.model(vocabulary=len(TOKENIZER), seed=n) for n in range(2)]
    sizes = [TeacherModel("t", each, size) for each, size in zip(made, (10**6, 10**7), strict=True)]
    small, large = in_turn(sizes)
    head = made[0].get_output_embeddings().weight
    assert (small.size, large.size) == (head.numel() * 4, 10**7)
