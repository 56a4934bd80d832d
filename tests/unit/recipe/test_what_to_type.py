"""Mistakes in a recipe or on the command line say what to type instead."""

import pytest
from recipe_texts import SIMPLE, read

from kdcore import RecipeError, UsageError
from kdcore.errors import did_you_mean
from kdcore.recipe.overrides import expand_grid


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def said(text, *sets):
    with pytest.raises(RecipeError) as raised:
        read(text, sets=sets)
    assert len(str(raised.value).splitlines()) <= 6
    return str(raised.value)


@pytest.mark.parametrize(
    "text, hint",
    [
        ('{"train": {"lr": 1}}', "write [train]"),
        ("train:\n  lr: 1\n", "write key = value, and a table as [train]"),
        ("l\tr = 1\n", "a key is one word: lr = 1e-3"),
        ("lr = 1e-3,\n", "write one key a line"),
        ("lr = 0,001\n", "numbers have a point: 0.001"),
        ("compile = True\n", "write true and false in small letters"),
        ("use = \u201ckl\u201d\n", 'write straight quotes: use = "kl"'),
        ("use = kl\n", 'a text needs quotes: use = "kl"'),
        ('use = "kl\n', "a text ends with the quote that it begins with"),
    ],
)
def test_what_is_not_toml(text, hint):
    assert hint in said(text)


@pytest.mark.parametrize(
    "change, hint",
    [
        ("lr=1", "did you mean train.lr?"),
        ("learning_rate=1", "did you mean train.lr?"),
        ("path=a.txt", "did you mean data.path?"),
        ("loss.temperature=2", "loss.1.temperature"),
    ],
)
def test_a_key_without_its_table(change, hint):
    assert hint in said(SIMPLE, change)


def test_an_amount_is_missing():
    lines = [line for line in SIMPLE.splitlines() if not line.startswith(("steps", "epochs"))]
    assert "add epochs = 3, steps = 1000 or tokens" in said("\n".join(lines))


def test_a_stage_in_a_recipe_without_stages():
    assert "or add [stage.gone]" in said(SIMPLE, "student.model=@gone")


@pytest.mark.parametrize("values", ["0..3", "0...3", "0:3", "0-3", "range(3)"])
def test_a_range_of_values(values):
    with pytest.raises(UsageError, match=r"write every value, such as --each seed=0,1,2"):
        expand_grid([], [f"seed={values}"])


def test_the_case_of_letters_is_forgiven():
    assert did_you_mean("KL", ["ce", "kl"]) == "; did you mean 'kl'?"
