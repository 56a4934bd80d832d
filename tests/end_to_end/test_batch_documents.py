"""Runs whose steps draw documents: as many steps, and as good, as with a document a row."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import whole_runs
from safetensors.torch import load_file

from kdcore import RecipeError, RunError
from kdcore.cli.main import plugin_manager
from kdcore.recipe.recipe import read_recipe
from kdcore.runs.runner import RunRequest, run_all

pytestmark = pytest.mark.slow

DOCUMENTS = whole_runs.RECIPE.replace("steps = 4\nbatch = 4", "epochs = 2\nbatch_documents = 5")
TASKS = DOCUMENTS.replace(
    'use = "stories"\nstories = 20\nvalidation = 4\nblock = 32',
    'use = "story-tasks"\ntasks = 20\nvalidation = 4\nblock = 320',
).replace("vocab_size = 270", "vocab_size = 400")
ONE = {
    "text": TASKS.replace("batch_documents = 5", "batch = 5") + "\n",
    "sets": ('data.rows="one"',),
}


@pytest.fixture(scope="module")
def host():
    return plugin_manager([])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def lines(folder):
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in read if "eval/nll" in line]


def last(folder):
    return lines(folder)[-1]


def weights(folder):
    return load_file(folder / "final" / "model.safetensors")


def test_tasks_take_the_steps_and_reach_the_loss_of_a_task_a_row(host):
    (packed,) = whole_runs.run(host, TASKS, "packed.toml")
    (one,) = whole_runs.run(host, ONE["text"], "one.toml", sets=ONE["sets"])
    assert last(packed)["step"] == last(one)["step"] == 20 * 2 / 5
    assert last(packed)["eval/nll"] == pytest.approx(last(one)["eval/nll"], abs=1e-4)
    (rows,) = whole_runs.run(host, ONE["text"], "rows.toml", sets=("data.block=640",))
    assert last(rows)["step"] < last(one)["step"]  # a packed row holds several


def test_micro_batches_change_nothing(host):
    (whole,) = whole_runs.run(host, TASKS, "a.toml")
    (cut,) = whole_runs.run(host, TASKS, "b.toml", sets=("train.micro_batch=1",), out=Path("other"))
    assert last(cut)["eval/nll"] == pytest.approx(last(whole)["eval/nll"], abs=1e-5)


def test_a_resumed_run_ends_with_the_same_weights(host):
    (folder,) = whole_runs.run(host, TASKS, sets=("train.save_keep=9",))
    first = weights(folder)
    for gone in ("final", "checkpoints/step-8", "checkpoints/step-6"):
        shutil.rmtree(folder / gone)
    run_all(RunRequest(str(folder)), host)
    second = weights(folder)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_cached_teacher_answers_however_documents_are_packed(host):
    text = whole_runs.STAGES.replace("steps = 4\nbatch = 4", "epochs = 1\nbatch_documents = 5")
    text = text.replace("eval_rows = 4", 'eval_rows = "all"')  # the rows differ, not the tokens
    packed = whole_runs.run(host, text, "packed.toml")[-1]
    one = whole_runs.run(host, text, "one.toml", sets=('data.rows="one"', 'data.cut="split"'))[-1]
    assert last(packed)["step"] == last(one)["step"] == 4
    assert last(packed)["eval/nll"] == pytest.approx(last(one)["eval/nll"], abs=1e-4)


def test_a_stream_draws_documents_too(host, tmp_path):
    (tmp_path / "train.txt").write_text("\n".join(f"story {n}" * (1 + n % 5) for n in range(60)))
    text = DOCUMENTS.replace("epochs = 2", "steps = 6").replace(
        'use = "stories"\nstories = 20\nvalidation = 4\nblock = 32',
        f'use = "text"\npath = "{tmp_path}/train.txt"\nseparator = "\\n"\nstreaming = true\n'
        "validation_share = 0.1\nblock = 64",
    )
    (folder,) = whole_runs.run(host, text)
    assert last(folder)["step"] == 6


def test_batch_and_batch_documents_are_rivals(host, tmp_path):
    (tmp_path / "r.toml").write_text(DOCUMENTS + "\n")
    train = read_recipe("r.toml", host, sets=["train.batch=3"]).build("").train
    assert (train.batch, train.batch_documents) == (3, None)
    (tmp_path / "child.toml").write_text('extends = "r.toml"\n[train]\nbatch = 2\n')
    assert read_recipe("child.toml", host).build("").train.batch_documents is None
    both = DOCUMENTS.replace("batch_documents = 5", "batch_documents = 5\nbatch = 4")
    (tmp_path / "r.toml").write_text(both)
    with pytest.raises(RecipeError, match="takes one of batch and batch_documents, and") as raised:
        read_recipe("r.toml", host)
    assert "leave out batch_documents or batch" in str(raised.value)


def test_chunks_hold_no_documents(host, tmp_path):
    (tmp_path / "r.toml").write_text(DOCUMENTS.replace("block = 32", 'block = 32\nrows = "chunk"'))
    with pytest.raises(RecipeError, match='rows = "chunk" cuts across them'):
        read_recipe("r.toml", host)


def test_too_few_documents_for_a_step_are_reported(host):
    with pytest.raises(RunError, match=r"20 documents .* type --set train\.batch_documents=20"):
        whole_runs.run(host, DOCUMENTS, sets=("train.epochs=1", "train.batch_documents=30"))
