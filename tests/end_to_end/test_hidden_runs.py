"""Whole runs of losses between hidden states: what they learn is kept, resumed and left behind."""

import signal
from pathlib import Path

import forked
import pytest
import torch
from safetensors.torch import load_file
from test_stages import KILLER, assert_same_weights, metrics, run
from whole_runs import recipe_text

from kdcore.plugin.manager import PluginManager
from kdcore.training.checkpoints.folders import newest

pytestmark = pytest.mark.slow

RECIPE = recipe_text(
    {
        "student.config.intermediate_size": 40,
        "student.config.num_hidden_layers": 2,
        "train.steps": 6,
        "train.micro_batch": 2,
        "train.eval_every": 3,
        "train.weight_decay": 0.1,
    },
    """\
[stage.big.student.config]
hidden_size = 24
num_hidden_layers = 3

[stage.one.teacher]
use = "hf"
model = "@big"
[[stage.one.loss]]
use = "hidden-mse"
layers = [[1, 1], [-1, -1]]
projection = "linear"
[[stage.one.loss]]
use = "kl"
""",
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("one.toml").write_text(RECIPE)


@pytest.fixture(scope="module")
def host():
    return PluginManager(off=["panel"])


def learned(folder):
    kept = load_file(newest(folder / "checkpoints") / "components.safetensors")
    return {key: each for key, each in kept.items() if key.startswith("loss.0/")}


def test_a_projection_survives_a_kill(host):
    _, whole = run(host, out=Path("whole"))
    kill = "__import__('os').kill(__import__('os').getpid(), 9)"
    text = KILLER.format(step=4, name="one.one").replace("raise KeyboardInterrupt", kill)
    Path("killer.py").write_text(text)
    killed = forked.run("kdcore", "run", "one.toml", "-p", "./killer.py")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    _, ended = run(host)
    assert metrics(ended) == metrics(whole)
    assert_same_weights(ended, whole)
    found, expected = learned(ended), learned(whole)
    assert {key: tuple(each.shape) for key, each in found.items()} == {
        "loss.0/0.weight": (24, 16),
        "loss.0/1.weight": (24, 16),
    }
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    final = load_file(whole / "final" / "model.safetensors")
    assert not [name for name, each in final.items() if set(each.shape) == {24, 16}]


def test_two_processes_learn_the_same_projection(host):
    _, whole = run(host, out=Path("whole"))
    both = ("kdcore", "run", "one.toml", "--processes", "2")
    done = forked.run(*both, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    (two,) = Path("runs").glob("one.one-*")
    for key, each in learned(whole).items():
        torch.testing.assert_close(learned(two)[key], each, rtol=1e-4, atol=1e-6)


def test_the_average_of_the_student_shows_its_states(host):
    loss = "{use='hidden-cosine', layers=[[1, 1], [2, -1]]}"
    sets = ("stage.one.teacher={use='ema', decay=0.5}", f"stage.one.loss=[{loss}, {{use='ce'}}]")
    _, folder = run(host, sets=sets)
    values = [line["loss/hidden-cosine"] for line in metrics(folder) if "loss" in line]
    assert values[0] == pytest.approx(0, abs=1e-6), "the average begins as the student"
    assert values[-1] > 1e-6


def test_a_run_without_a_loss_of_logits(host):
    loss = "[{use='hidden-mse', layers=[[1, 1]], projection='linear'}]"
    _, folder = run(host, sets=(f"stage.one.loss={loss}",))
    values = [line["loss"] for line in metrics(folder) if "loss" in line]
    assert values[-1] < values[0]
