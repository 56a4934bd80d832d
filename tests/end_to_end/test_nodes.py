"""One run on two nodes with different numbers of processes, with and without a shared disk."""

import json

import pytest
import torch
import whole_runs
from nodes import run_on
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

# Records of two steps at the end of four, so that a checkpoint has sums of a step; random states.
RECIPE = (
    whole_runs.STAGES.replace("log_every = 1", "log_every = 3")
    .replace("micro_batch = 4", "micro_batch = 1")
    .replace("num_attention_heads = 2", "num_attention_heads = 2\nattention_dropout = 0.1")
)
PROCESSES = (1, 2)


def made(folder):
    folder.mkdir()
    (folder / "r.toml").write_text(RECIPE)
    return folder


def stage(folder, name):
    (found,) = (folder / "runs").glob(f"r.{name}-*")
    return found


def records(folder):
    lines = map(json.loads, (stage(folder, "big") / "metrics.jsonl").read_text().splitlines())
    times = ("time", "elapsed", "cpu_seconds", "tokens_per_second")
    numbers = (int, float)
    return [
        {k: value for k, value in line.items() if k not in times and isinstance(value, numbers)}
        for line in lines
    ]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A run on two nodes that share everything."""
    folder = made(tmp_path_factory.mktemp("nodes") / "shared")
    ended = run_on([folder, folder], PROCESSES, "r.toml")
    assert [code for code, _ in ended] == [0, 0], ended
    return folder


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Two that share nothing; the run loses a process, and is resumed."""
    both = [made(tmp_path_factory.mktemp("nodes") / f"disk-{rank}") for rank in range(2)]
    harmed = run_on(both, PROCESSES, "r.toml", HARM="r.big 4 2")
    assert [code for code, _ in harmed] == [1, 1], harmed
    assert "another process of the run has ended" in harmed[0][1]
    assert not [said for _, said in harmed if "a bug in" in said]
    assert [path.name for path in (stage(both[0], "big") / "checkpoints").glob("step-*")] == [
        "step-2"
    ]
    resumed = run_on(both, PROCESSES, "r.toml")
    assert [code for code, _ in resumed] == [0, 0], resumed
    assert "continues after step 2 of 4" in resumed[0][1]
    return both


def weights(folder, name):
    return load_file(stage(folder, name) / "final" / "model.safetensors")


@pytest.mark.parametrize("name", ["big", "small"])
def test_a_resumed_run_on_disks_of_their_own_is_that_on_a_shared_one(shared, nodes, name):
    """But for the order in which three processes add, which changes when the buckets of DDP do."""
    one, other = (weights(folder, name) for folder in (shared, nodes[0]))
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, other[key], rtol=0, atol=1e-6)


def test_records_are_those_of_a_run_that_nothing_ended(shared, nodes):
    for one, other in zip(records(shared), records(nodes[0]), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_the_run_is_on_the_first_disk_only(nodes):
    first, second = ({path.name for path in stage(each, "big").iterdir()} for each in nodes)
    assert {"final", "checkpoints", "metrics.jsonl", "recipe.toml"} <= first
    assert second == {"tokenizer", "checkpoints", "resolved.toml", "final"}
    assert not [*(stage(nodes[1], "big") / "checkpoints").iterdir()]
    assert {path.name for path in stage(nodes[1], "small").iterdir()} == {"tokenizer"}


def test_data_and_caches_are_on_both(nodes):
    for folder in nodes:
        assert [*folder.rglob("*.arrow")]
        assert [*(folder / "runs" / "caches").glob("*/meta.json")]
