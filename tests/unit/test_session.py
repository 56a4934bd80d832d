"""kdcore from Python says and does what the command line does."""

import json
from pathlib import Path

import pytest
import tomli

import kdcore

RECIPE = {
    "name": "small",
    "student": {
        "config": {
            "model_type": "llama",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
    },
    "tokenizer": {"use": "bpe", "vocab_size": 300},
    "data": {"use": "stories", "block": 32, "stories": 40},
    "loss": [{"use": "ce"}],
    "train": {"lr": 1e-3, "steps": 4, "batch": 2, "log_every": 2},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out, seen = tmp_path_factory.mktemp("runs"), []
    return kdcore.run(RECIPE, out=out, on_record=lambda record: seen.append(record.step)), seen


@pytest.mark.slow
def test_a_run_gives_its_folder_metrics_scores_and_model(done):
    result, seen = done
    assert seen == [2, 4]
    assert result.folder.name.startswith("small-")
    assert len({tuple(line) for line in result.metrics}) == 1
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").open()]
    assert [line["step"] for line in result.metrics] == [line["step"] for line in lines]
    assert result.scores["nll"] == lines[-1]["eval/nll"]
    assert result.model.config.hidden_size == 16
    assert len(result.tokenizer) == 300


@pytest.mark.slow
def test_a_finished_run_is_loaded_by_its_name(done):
    result, _ = done
    again = kdcore.load("small", out=result.folder.parent)
    assert again.folder == result.folder
    assert again.metrics == result.metrics


@pytest.mark.slow
def test_the_same_recipe_is_not_run_again(done):
    result, _ = done
    before = (result.folder / "metrics.jsonl").read_text()
    assert kdcore.run(RECIPE, out=result.folder.parent).folder == result.folder
    assert (result.folder / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_sets_are_a_mapping_or_arguments():
    with pytest.raises(kdcore.RecipeError, match="has no option 'vocabulary'"):
        kdcore.check(RECIPE, sets={"tokenizer": {"use": "bpe", "vocabulary": [1, {"a": True}]}})
    assert kdcore.check(RECIPE, sets=["train.lr=1e-4"]) == []
    (stage,) = kdcore.plan(RECIPE, sets={"train.steps": 7, "data.block": 16})
    assert stage.steps == 7


def test_a_wrong_recipe_raises_what_check_prints(tmp_path, capsys):
    wrong = {**RECIPE, "train": {"lr": "fast", "stepz": 4}}
    with pytest.raises(kdcore.RecipeError) as raised:
        kdcore.run(wrong, out=tmp_path)
    assert {fault.file for fault in raised.value.errors} == {"recipe"}
    assert "stepz" in str(raised.value) and "lr should be" in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_an_unknown_run_is_a_sentence(tmp_path):
    with pytest.raises(kdcore.UsageError, match="no-such-run"):
        kdcore.load("no-such-run", out=tmp_path)


@pytest.mark.slow
def test_what_a_callback_raises_ends_the_run(tmp_path):
    def fail(record):
        raise ValueError("seen enough")

    with pytest.raises(kdcore.PluginError, match="seen enough"):
        kdcore.run(RECIPE, out=tmp_path, on_record=fail)


def test_shipped_recipes_are_checked_by_name():
    assert kdcore.check("quickstart") == []
    assert tomli.loads(Path("recipes/quickstart.toml").read_text())
