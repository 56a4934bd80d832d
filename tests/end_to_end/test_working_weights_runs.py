"""Runs with bf16 working weights learn as those without, and resume to the bit."""

import json
import math

import forked
import pytest
import torch
import whole_runs
from safetensors.torch import load_file

from kdcore import RunError
from kdcore.cli.main import plugin_manager

pytestmark = pytest.mark.slow

BF16 = ("train.precision=bf16", "train.bf16_weights=true")


@pytest.fixture(scope="module")
def host():
    return plugin_manager([])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def last(folder, key="eval/nll"):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line[key] for line in lines if key in line][-1]


def weights(folder, at="final/model.safetensors"):
    return load_file(folder / at)


@pytest.mark.parametrize("tied", [False, True])
def test_they_learn_as_float32_does(host, tied):
    """Four micro-batches a step; a rate so small that bf16 weights alone would not move."""
    sets = ("train.steps=24", "train.micro_batch=1", "train.lr=2e-3", "train.eval_every=24")
    sets += ("train.save_every=24", f"student.config.tie_word_embeddings={str(tied).lower()}")
    (plain,) = whole_runs.run(host, sets=sets)
    (half,) = whole_runs.run(host, sets=(*sets, *BF16))
    assert math.isclose(last(half), last(plain), rel_tol=5e-3)
    assert last(half) < 5.4  # from 5.6


def test_final_weights_checkpoints_and_moments_are_float32(host):
    (folder,) = whole_runs.run(host, sets=BF16)
    kept = folder / "checkpoints" / "step-4"
    held = [weights(kept, name) for name in ("student.safetensors", "optimizer.safetensors")]
    for each in (weights(folder), *held):
        assert {tensor.dtype for tensor in each.values()} == {torch.float32}
    rounded = [t.bfloat16().float() for t in weights(folder).values()]
    assert not all(map(torch.equal, rounded, weights(folder).values()))


def test_a_resumed_run_is_the_same_to_the_bit(host):
    (whole,) = whole_runs.run(host, sets=BF16, out=whole_runs.Path("whole"))
    stop = whole_runs.Path("stop.py")
    stop.write_text(
        "import kdcore\n\n\n"
        "@kdcore.hookimpl\n"
        "def kdcore_step_start(run, step):\n"
        "    if step == 4:\n"
        "        raise KeyboardInterrupt\n"
    )
    with pytest.raises(KeyboardInterrupt):
        whole_runs.run(plugin_manager(["stop.py"]), sets=BF16, out=whole_runs.Path("halves"))
    (again,) = whole_runs.run(host, sets=BF16, out=whole_runs.Path("halves"))
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(again)[name])


def test_two_processes_learn_the_same(host):
    (one,) = whole_runs.run(host, sets=BF16, out=whole_runs.Path("one"))
    words = [word for each in BF16 for word in ("--set", each)]
    done = forked.run("kdcore", "run", "r.toml", "--processes", "2", *words)
    assert done.returncode == 0, done.stderr
    (two,) = whole_runs.Path("runs").glob("r-*")
    assert math.isclose(last(one), last(two), rel_tol=1e-5)


def test_a_cpu_in_float32_refuses_them(host):
    with pytest.raises(RunError, match=r"train\.bf16_weights = true needs precision"):
        whole_runs.run(host, sets=("train.bf16_weights=true",))
