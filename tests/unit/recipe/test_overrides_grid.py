"""Variants of a recipe."""

import pytest
from recipe_texts import TAUGHT, table

from kdcore.errors import UsageError
from kdcore.recipe.overrides import expand_grid


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_multiplies():
    assert expand_grid(["a=1"], []) == [("", ["a=1"])]
    variants = expand_grid(["a=1"], ["loss.kl.use=kl,skew-kl", "seed=0,1"])
    assert [label for label, _ in variants] == [
        "loss.kl.use=kl seed=0",
        "loss.kl.use=kl seed=1",
        "loss.kl.use=skew-kl seed=0",
        "loss.kl.use=skew-kl seed=1",
    ]
    assert variants[3][1] == ["a=1", "loss.kl.use=skew-kl", "seed=1"]


def test_each_splits_at_the_commas_outside():
    values = '[0.9, 0.99],{a = "x,]", b = [1, 2]},"p,q",it\'s'
    assert [label for label, _ in expand_grid([], [f"k={values}"])] == [
        "k=[0.9, 0.99]",
        'k={a = "x,]", b = [1, 2]}',
        'k="p,q"',
        "k=it's",
    ]


@pytest.mark.parametrize("each", ["seed", "seed=", "=1,2", "seed=1,,2", "seed=1,"])
def test_each_needs_values(each):
    with pytest.raises(UsageError, match="write K=a,b,c"):
        expand_grid([], [each])


def test_each_takes_a_key_once():
    with pytest.raises(UsageError, match="--each seed is given twice"):
        expand_grid([], ["seed=1", "seed=2"])


def test_each_may_change_a_use_and_an_option_of_it():
    for _, sets in expand_grid([], ["loss.kl.use=kl,skew-kl", "loss.kl.temperature=1,4"]):
        assert table(TAUGHT, *sets)["loss"][1]["temperature"] in (1, 4)
