"""A run is the same again: by its resolved recipe, with workers, whatever was drawn before it."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdcore.plugin.manager import PluginManager
from kdcore.runs.runner import RunRequest, run_all

pytestmark = pytest.mark.slow

RECIPE = """
seed = 5

[tokenizer]
use = "bpe"
vocab_size = 300

[data]
use = "noisy"
share = 0.5
source = {use = "stories", stories = 30, validation = 5}
block = 32

[student.config]
model_type = "gpt2"
n_embd = 16
n_layer = 1
n_head = 2
resid_pdrop = 0.3
[[student.patch]]
use = "lora"
rank = 2
dropout = 0.2

[selection]
use = "random"
keep = 0.5

[[loss]]
use = "ce"

[[log]]
use = "dice"

[train]
steps = 4
batch = 4
micro_batch = 2
lr = 1e-2
log_every = 1
eval_rows = 8
"""
DICE = """
import json
import random

import numpy
import torch

from kdcore import Logger, component, hookimpl


@component
class Dice(Logger):
    name = "dice"

    @hookimpl
    def kdcore_step_start(self, run, step):
        drawn = [random.random(), float(numpy.random.rand()), float(torch.rand(1))]
        with (run.folder / "dice.txt").open("a") as file:
            file.write(json.dumps(drawn) + "\\n")


@hookimpl
def kdcore_loggers():
    return [Dice]
"""
TIMES = ("time", "elapsed", "cpu_seconds", "tokens_per_second")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("one.toml").write_text(RECIPE)
    Path("dice.py").write_text(DICE)


def run(recipe="one.toml", **asked):
    """What a run leaves, begun with other random states each time."""
    random.seed(), np.random.seed(), torch.seed()
    host = PluginManager(off=["panel"], files=["dice.py"])
    (folder,) = run_all(RunRequest(str(recipe), Path("runs"), **asked), host)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    numbers = [{key: line[key] for key in line if key not in TIMES} for line in lines]
    weights = load_file(folder / "final" / "model.safetensors")
    return folder, numbers, (folder / "dice.txt").read_text(), weights


def assert_same(one, other):
    assert one[1:3] == other[1:3]
    assert all(torch.equal(one[3][name], weight) for name, weight in other[3].items())


def test_the_resolved_recipe_gives_the_same_again():
    first = run()
    again = run(first[0] / "resolved.toml", fresh=True)
    assert again[0] != first[0]
    assert_same(first, again)


def test_workers_change_nothing():
    first = run()
    assert_same(first, run(sets=("train.workers=1",), fresh=True))


def test_another_seed_changes_everything():
    one, other = run(), run(sets=("seed=6",))
    assert one[2] != other[2]
    losses = ([line["loss"] for line in each[1] if "loss" in line] for each in (one, other))
    assert not set(next(losses)) & set(next(losses))


def test_where_it_ran_elsewhere_that_is_said(caplog):
    folder = run()[0]
    said = json.loads((folder / "env.json").read_text())
    said["processor"]["name"] = "an abacus"
    (folder / "env.json").write_text(json.dumps(said))
    with caplog.at_level("INFO", "kdcore"):
        run(folder / "resolved.toml", fresh=True)
    assert "processor name was an abacus, is " in caplog.text
