"""`kdcore show --data RECIPE --rollouts` and what `kdcore plan` says of writing."""

import json

import pytest
from typer.testing import CliRunner
from whole_runs import recipe_text

from kdcore.analysis.writing import cache_bytes
from kdcore.cli.main import app
from kdcore.errors import UsageError

pytestmark = pytest.mark.slow

RECIPE = recipe_text(
    {
        "student.config.num_hidden_layers": 3,
        "student.config.num_attention_heads": 4,
        "student.config.num_key_value_heads": 2,
        "train.steps": 10,
    }
)
ROLLOUT = """
[rollout]
use = "student"
prompt_tokens = 6
max_new_tokens = 8
share = 0.5
every = 2
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    (tmp_path / "plain.toml").write_text(RECIPE)
    (tmp_path / "rolled.toml").write_text(RECIPE + ROLLOUT)
    staged = ROLLOUT.replace(
        "[rollout]", '[stage.two.student]\nmodel = "@one"\n[stage.two.rollout]'
    )
    (tmp_path / "staged.toml").write_text(f"{RECIPE}[stage.one]\n{staged}")


def said(*words):
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_student_as_it_is_answers():
    shown = json.loads(said("show", "--data", "rolled.toml", "--rollouts", "--rows", "2", "--json"))
    assert len(shown) >= 2
    for one in shown:
        assert one["source"] == "student" and 1 <= one["tokens"] <= 8
        assert one["finished"] or one["tokens"] == 8
    again = json.loads(said("show", "--data", "rolled.toml", "--rollouts", "--rows", "2", "--json"))
    assert again == shown
    text = said("show", "--data", "rolled.toml", "--rollouts", "--rows", "1")
    assert "student(max_new_tokens=8)" in text


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--data", "plain.toml"], r"no stage of the recipe has a \[rollout\]"),
        (["--data", "staged.toml"], "begins from @one, which is not finished in runs"),
        ([], "--rollouts needs --data"),
    ],
)
def test_what_is_missing_is_said(words, why):
    with pytest.raises(UsageError, match=why):
        said("show", *words, "--rollouts")


def test_plan_counts_what_is_written_and_its_memory():
    text = said("plan", "rolled.toml")
    assert "50 % of the rows of each step, those of 2 steps at once, 64 prompts together" in text
    assert "at most 160 tokens" in text  # 10 steps of 4 rows, half of them, 8 tokens each
    assert "writing: key-value cache and scores" in text
    assert "writing:" not in said("plan", "plain.toml")


def test_the_cache_is_what_transformers_keeps():
    import tiny
    import torch
    from transformers import DynamicCache

    model, cache = tiny.model(num_hidden_layers=3), DynamicCache()
    model(torch.ones(5, 11, dtype=torch.long), past_key_values=cache, use_cache=True)
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes(model.config, 5, 11, 4) == kept
