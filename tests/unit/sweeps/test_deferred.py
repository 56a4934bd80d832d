"""What is measured of finished runs for a control, from their records."""

import json
from pathlib import Path

import pytest

from kdcore.errors import RunError
from kdcore.plugin.manager import PluginManager
from kdcore.sweeps.deferred import (
    DeferredTask,
    counts_cpu_seconds,
    kept_share,
    last_step,
    make_recipe,
    training_seconds,
)


def run_with(folder, *lines):
    folder.mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    return folder


def test_seconds_are_those_of_training(tmp_path):
    folder = run_with(
        tmp_path / "run",
        {"step": 0, "tokens": 0, "eval/nll": 5.0, "elapsed": 100.0},
        {"step": 10, "tokens": 1000, "tokens_per_second": 500.0, "kept": 0.5},
        {"step": 20, "tokens": 2500, "tokens_per_second": 1000.0, "kept": 0.25},
        {"step": 20, "tokens": 2500, "eval/nll": 4.0, "elapsed": 900.0},
    )
    assert training_seconds(folder) == 1000 / 500 + 1500 / 1000
    assert kept_share(folder) == 0.375 and last_step(folder) == 20


def test_without_a_gpu_training_is_measured_in_cpu_seconds(tmp_path):
    folder = run_with(
        tmp_path / "run",
        {"step": 0, "tokens": 0, "eval/nll": 5.0, "cpu_seconds": 7.0},
        {"step": 10, "tokens": 1000, "tokens_per_second": 500.0, "cpu_seconds": 10.0},
        {"step": 10, "tokens": 1000, "eval/nll": 4.0, "cpu_seconds": 16.0},
        {"step": 20, "tokens": 2500, "tokens_per_second": 1000.0, "cpu_seconds": 17.5},
    )
    assert not counts_cpu_seconds(folder)  # nothing says which devices it used
    (folder / "env.json").write_text('{"devices": []}')
    assert counts_cpu_seconds(folder)
    assert training_seconds(folder, cpu=True) == 3.0 + 1.5
    (folder / "env.json").write_text('{"devices": [{"name": "a GPU"}]}')
    assert not counts_cpu_seconds(folder)


def test_a_run_without_a_record_cannot_be_measured(tmp_path):
    folder = run_with(tmp_path / "run", {"step": 3})
    with pytest.raises(RunError, match="how long it trained"):
        training_seconds(folder)
    with pytest.raises(RunError, match="how many tokens it kept"):
        kept_share(folder)


def test_what_was_worked_out_once_stays(tmp_path):
    made = tmp_path / "made.toml"
    words = dict.fromkeys(("control", "stage", "recipe", "twin", "plain"), "nothing of the kind")
    task = DeferredTask(**words, made=str(made), plugins=("no:panel",), command=("a", "b"))
    task.write(tmp_path / "task.json")
    assert DeferredTask.read(Path(tmp_path / "task.json")) == task
    made.write_text("as it was")
    make_recipe(task, PluginManager(off=["panel"]))
    assert made.read_text() == "as it was"
