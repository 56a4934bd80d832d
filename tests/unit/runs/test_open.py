"""Runs that are opened again: the same weights, rows and numbers as when they ran."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from whole_runs import recipe_text

from kdcore import UsageError
from kdcore.analysis.rows import selected_rows
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe
from kdcore.runs.open import begun, in_students_place, open_stage
from kdcore.runs.runner import RunRequest, run_all
from kdcore.training.evaluation import run_evals

pytestmark = pytest.mark.slow

RECIPE = recipe_text(
    {
        "name": "chosen",
        "tokenizer.vocab_size": 300,
        "data.stories": 30,
        "data.validation": 5,
        "student.config.intermediate_size": 32,
        "train.eval_rows": 8,
    },
    """\
[stage.reference.train]
steps = 2
[stage.student]
[[stage.student.eval]]
use = "agreement"
[stage.student.teacher]
use = "hf"
model = "@reference"
[stage.student.selection]
use = "rho"
keep = 0.4
reference = {use = "hf", model = "@reference"}
""",
)


@pytest.fixture(scope="module")
def host():
    return PluginManager()


@pytest.fixture(scope="module")
def ran(tmp_path_factory, host):
    place = tmp_path_factory.mktemp("ran")
    (place / "chosen.toml").write_text(RECIPE)
    run_all(RunRequest(str(place / "chosen.toml"), place / "runs"), host)
    (folder,) = (place / "runs").glob("chosen.student-*")
    return folder


def lines(folder, key):
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in read if key in line}


def scores_at(folder, step):
    line = lines(folder, "eval/nll")[step]
    return {key[5:]: value for key, value in line.items() if key.startswith("eval/")}


@pytest.mark.parametrize("step", [None, 2, 4])
def test_the_numbers_are_those_of_the_run(ran, host, step):
    before = sorted(path.stat().st_mtime_ns for path in ran.rglob("*"))
    run = open_stage(begun(ran, host, step=step))
    assert run_evals(run) == scores_at(ran, step or 4)
    assert (run.step, run.steps) == (step or 4, 4)
    assert not run.student.training
    assert before == sorted(path.stat().st_mtime_ns for path in ran.rglob("*"))


def test_an_eval_may_be_left_out_and_another_come(ran, host):
    sets = ["eval.samples.max_new_tokens=3"]
    run = open_stage(begun(ran, host, evals=["perplexity", "samples"], sets=sets))
    assert run_evals(run).keys() == {"nll", "perplexity", "bits_per_byte", "sample/1"}


def test_an_unfinished_run_has_its_newest_checkpoint(ran, host, tmp_path):
    copy = shutil.copytree(ran, tmp_path / ran.name)
    shutil.rmtree(copy / "final")
    shutil.rmtree(copy / "checkpoints" / "step-4")
    assert run_evals(open_stage(begun(copy, host))) == scores_at(ran, 2)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UsageError, match=r"no checkpoint yet: type kdcore run .*chosen\.student"):
        open_stage(begun(copy, host))


def test_a_step_that_was_not_kept(ran, host):
    with pytest.raises(UsageError, match="no checkpoint of step 3; it has those of 2, 4"):
        open_stage(begun(ran, host, step=3))


def test_a_damaged_checkpoint_is_said(ran, host, tmp_path):
    copy = shutil.copytree(ran, tmp_path / ran.name)
    (copy / "checkpoints" / "step-2" / "state.json").write_text("{}")
    with pytest.raises(UsageError, match=r"damaged \(state.json changed\)"):
        open_stage(begun(copy, host, step=2))


def test_another_model_in_the_students_place(ran, host):
    recipe = read_recipe(str(ran / "resolved.toml"), host)
    (table,) = recipe.stages
    stage = recipe.build(table.name)
    run = open_stage(in_students_place(str(ran / "final"), stage, Path("nowhere") / "run"))
    assert run_evals(run) == scores_at(ran, 4)
    assert not Path("nowhere").exists()


def test_chosen_rows_are_those_of_the_step(ran, host):
    run = open_stage(begun(ran, host, step=2))
    rows = selected_rows(run, 3)
    record = lines(ran, "loss")[3]
    valid = sum(row.valid.sum() for row in rows)
    kept = np.concatenate([row.score[row.kept] for row in rows])
    dropped = np.concatenate([row.score[row.valid & ~row.kept] for row in rows])
    assert len(kept) == np.ceil(0.4 * valid)
    assert kept.min() >= dropped.max()
    # The weights are those that step 3 began with, so its record is of these very tokens.
    assert kept.min() == pytest.approx(record["selection/threshold"], rel=1e-5)
    for row in rows:
        first = np.flatnonzero(np.diff(row.document, prepend=-2))
        assert not row.valid[first].any() and row.valid.sum() == len(row.valid) - len(first)
        assert np.isfinite(row.nll).tolist() == row.valid.tolist()


def test_chosen_values_stand_at_the_token_that_is_predicted(ran, host):
    run = open_stage(begun(ran, host))
    for row in selected_rows(run, 1):
        for document in np.unique(row.document):
            ids = torch.tensor(row.input_ids[row.document == document])[None]
            logits = run.student(ids, use_cache=False).logits[0, :-1].log_softmax(-1)
            nll = -logits.gather(1, ids[0, 1:, None])[:, 0]
            found = row.nll[row.document == document][1:]
            assert found == pytest.approx(nll.tolist(), rel=1e-4)


def test_without_a_selection_everything_valid_is_kept(ran, host):
    (folder,) = ran.parent.glob("chosen.reference-*")
    for row in selected_rows(open_stage(begun(folder, host)), 1):
        assert (row.kept == row.valid).all() and np.isnan(row.score).all()
