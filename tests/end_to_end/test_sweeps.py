"""Whole sweeps: controls share weights, rows and order; what is killed is found again."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import tomli
import torch
from sweeping import SELECTION, STAGES, SWEEP, points
from whole_runs import RECIPE

from kdcore import Component, hookimpl
from kdcore.data.collate import Collate
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe
from kdcore.runs.runner import RunRequest, run_all, run_recipe
from kdcore.sweeps.controls import Twin, with_share, with_smoothing, with_steps

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("here")]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


class Watch(Component):
    """The first weights of a student, and the rows that it is trained on, in order."""

    name = "watch"
    component_kind = "callback"

    def __init__(self):
        self.weights, self.rows, self.training = {}, [], False

    @hookimpl
    def kdcore_run_start(self, run):
        self.rows = []
        self.weights = {name: each.clone() for name, each in run.student.state_dict().items()}

    @hookimpl
    def kdcore_step_start(self, run, step):
        self.training = True

    @hookimpl
    def kdcore_log(self, run, record):
        self.training = False


def watched(host, recipe, monkeypatch):
    """What a recipe's last stage begins with and reads."""
    watch, collate = Watch(), Collate.__call__

    def noting(self, rows):
        batch = collate(self, rows)
        if watch.training:
            watch.rows.append(batch.input_ids.tolist())
        return batch

    with monkeypatch.context() as patched, host.listening([watch]):
        patched.setattr(Collate, "__call__", noting)
        run_recipe(recipe, host, RunRequest(out=Path("runs")))
    return watch


def test_controls_begin_with_the_same_weights_and_read_the_same_rows(monkeypatch):
    host = PluginManager(off=["panel"])
    controls = '["no-teacher", "no-selection", "random-selection"]'
    text = (STAGES + SELECTION).replace("lr = 1e-2", "lr = 1e-2\nworkers = 0")
    twin, *made = points(host, f"{text}\n[sweep]\nseed = [3]\ncontrols = {controls}\n")
    of_twin = Twin.of(twin.recipe, "small")
    measured = [with_share(of_twin, 0.3), with_steps(of_twin, 6), with_smoothing(of_twin, 0.2)]
    recipes = [each.recipe for each in made]
    recipes += [read_recipe("r.toml", host, sets=[*twin.sets, *each]) for each in measured]
    expected = watched(host, twin.recipe, monkeypatch)
    assert len(expected.rows) == 4
    for recipe in recipes:
        found = watched(host, recipe, monkeypatch)
        assert found.rows[:4] == expected.rows
        assert found.weights.keys() == expected.weights.keys()
        for name, weight in expected.weights.items():
            assert torch.equal(found.weights[name], weight), name


def kdcore(*words):
    done = forked.run("kdcore", *words)
    return done.returncode, done.stdout, done.stderr


def finals(folder):
    """The final weights of every finished run."""
    found = Path(folder).glob("*/final/model.safetensors")
    return {path.parts[-3]: path.read_bytes() for path in found}


def test_a_sweep_is_what_each_run_alone_is():
    Path("r.toml").write_text(STAGES + SWEEP + 'controls = ["smoothed", "more-steps"]\n')
    code, out, err = kdcore("sweep", "r.toml", "--on", "local:2", "-p", "no:panel")
    assert code == 0, err
    record = json.loads(Path("runs/sweep.json").read_text())["points"]
    assert {each["control"] for each in record} == {None, "smoothed", "more-steps", "no-teacher"}
    assert {Path(line).name for line in out.splitlines()} >= {each["run"] for each in record}
    swept = finals("runs")
    host = PluginManager(off=["panel"])
    for each in record:
        if each["control"] is None:
            sets = ["sweep=", f"stage.small.seed={each['seed']}"]
            run_all(RunRequest("r.toml", Path("alone"), tuple(sets)), host)
    alone = finals("alone")
    assert len(alone) == 3 and alone.items() <= swept.items()
    (smoothed,) = {each["run"] for each in record if each["control"] == "smoothed"} & {
        each["run"] for each in record if each["seed"] == 0
    }
    made = tomli.loads(Path("runs", smoothed, "resolved.toml").read_text())
    assert 0.9 < made["loss"][1]["smoothing"] < 1  # a teacher that has hardly learned anything
    again = kdcore("sweep", "r.toml", "-p", "no:panel")
    assert again[0] == 0 and again[1] == out and finals("runs") == swept


def test_an_interrupt_ends_the_workers_with_checkpoints():
    Path("r.toml").write_text(
        RECIPE.replace("steps = 4", "steps = 100000") + "[sweep]\nseed = [0, 1]"
    )
    child = forked.Begun("kdcore", "sweep", "r.toml", "--on", "local:2")
    while len(list(Path().glob("runs/r-*/checkpoints/step-*"))) < 2:
        assert child.poll() is None
    child.send_signal(signal.SIGINT)
    _, err = child.communicate()
    assert child.returncode == 130 and "the same command resumes the sweep" in err
    logs = [path.read_text() for path in Path().glob("runs/.sweep/r/*.log")]
    assert len(logs) == 2 and all("a checkpoint is written" in log for log in logs)
    child = forked.Begun("kdcore", "sweep", "r.toml")
    while not owner_has_begun():
        assert child.poll() is None
    code, _, err = kdcore("sweep", "r.toml", "--cancel")
    assert code == 0 and f"process {child.pid} on" in err
    child.communicate()
    assert child.returncode == 143


def owner_has_begun():
    logs = [path.read_text() for path in Path().glob("runs/.sweep/r/*.log")]
    return any(log.count("continues after") for log in logs)


KILLS = Path(__file__).resolve().parents[2] / "benchmarks" / "robustness" / "sweeps.py"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks /proc for the workers")
def test_two_kills():
    done = subprocess.run([sys.executable, str(KILLS), "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("2 kills (")
