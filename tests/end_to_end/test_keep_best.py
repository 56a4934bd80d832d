"""The checkpoint that scored best is kept and becomes the final weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import whole_runs
from safetensors.torch import load_file

from kdcore import RecipeError, RunError
from kdcore.cli.main import plugin_manager
from kdcore.cli.results import tell_results
from kdcore.recipe.recipe import read_recipe
from kdcore.training.best import Best, is_better

pytestmark = pytest.mark.slow

# The loss falls with every step: the highest is the first one's.
FIRST = whole_runs.RECIPE.replace(
    "eval_every = 2\nsave_every = 2",
    'eval_every = 1\nsave_every = 1\nsave_keep = 1\nkeep_best = "eval/nll"\nmode = "max"',
)
LAST = FIRST.replace('\nmode = "max"', "")


@pytest.fixture(scope="module")
def host():
    return plugin_manager([])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def kept(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def same(one, other):
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def weights(folder):
    return load_file(folder / "final" / "model.safetensors")


def scores(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["eval/nll"] for line in lines if "eval/nll" in line}


def test_the_best_step_is_kept_and_final(host, caplog, capsys):
    caplog.set_level("INFO", "kdcore")
    (folder,) = whole_runs.run(host, FIRST)
    assert kept(folder) == ["step-1", "step-4"]
    same(load_file(folder / "checkpoints" / "step-1" / "student.safetensors"), weights(folder))
    best = scores(folder)[1]
    said = f"highest eval/nll, {best:.6g}"
    assert f"step 1 had the {said}: its weights are final" in caplog.text
    card = (folder / "final" / "README.md").read_text()
    assert f"The weights are those after step 1: {said}." in card
    tell_results([folder], as_json=True)
    assert json.loads(capsys.readouterr().out)["scores"]["nll"] == best


def test_where_the_last_step_is_best_nothing_else_is_kept(host):
    (folder,) = whole_runs.run(host, LAST)
    assert kept(folder) == ["step-4"]


def test_a_checkpoint_is_written_where_none_was_due(host):
    (folder,) = whole_runs.run(host, FIRST.replace("save_every = 1", "save_every = 4"))
    assert kept(folder) == ["step-1", "step-4"]


@pytest.mark.parametrize("last", [4, 3])
def test_a_resumed_run_knows_its_best(host, last):
    """From the last step, and from the one before."""
    (folder,) = whole_runs.run(host, FIRST, sets=("train.save_keep=9",))
    first = weights(folder)
    shutil.rmtree(folder / "final")
    if last == 3:
        shutil.rmtree(folder / "checkpoints" / "step-4")
    whole_runs.run(host, FIRST, sets=("train.save_keep=1",))
    same(first, weights(folder))
    assert kept(folder) == ["step-1", "step-4"]


def test_a_damaged_best_checkpoint_is_reported_and_not_replaced(host):
    (folder,) = whole_runs.run(host, FIRST)
    shutil.rmtree(folder / "final")
    whole_runs.flip(folder / "checkpoints" / "step-1" / "student.safetensors")
    with pytest.raises(RunError, match=r"step-1 scored best .*damaged .*--fresh"):
        whole_runs.run(host, FIRST)


def test_an_unmeasured_score_is_reported_before_the_first_step(host):
    text = FIRST.replace('"eval/nll"', '"eval/nl"')
    with pytest.raises(RunError, match=r"'eval/nl': no eval .*; they measure eval/nll, ") as raised:
        whole_runs.run(host, text)
    assert "eval/nll'?" in str(raised.value)
    assert not list(Path("runs").glob("*/checkpoints"))


def test_a_mode_without_a_score_is_an_error(host):
    Path("r.toml").write_text(FIRST.replace('keep_best = "eval/nll"\n', ""))
    with pytest.raises(RecipeError, match="add keep_best"):
        read_recipe("r.toml", host)


def test_what_is_measured_counts_for_the_identity_only_with_keep_best(host):
    for text, counts in ((FIRST, True), (whole_runs.RECIPE, False)):
        Path("r.toml").write_text(text)
        names = {
            read_recipe("r.toml", host, sets=[f"train.eval_every={n}"]).identity("") for n in (1, 2)
        }
        assert (len(names) == 2) == counts


def test_which_score_is_better():
    assert is_better(1.0, None, "min") and not is_better(float("nan"), None, "min")
    assert is_better(1.0, Best(1, 2.0), "min") and not is_better(2.0, Best(1, 2.0), "min")
    assert is_better(3.0, Best(1, 2.0), "max") and not is_better(1.0, Best(1, 2.0), "max")
