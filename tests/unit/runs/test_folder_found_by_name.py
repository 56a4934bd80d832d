"""Recipes and runs are found by what a person types."""

import os
import subprocess
import sys

import pytest

from kdcore.errors import UsageError
from kdcore.recipe import files
from kdcore.recipe.files import find_recipe, recipe_name, shipped_recipes
from kdcore.runs.folder import find_run, runs_in


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    folder = tmp_path / "package" / "recipes"
    (folder / "cpu").mkdir(parents=True)
    for name in ("rho_qwen", "quickstart", "cpu/rho_qwen"):
        (folder / f"{name}.toml").write_text("")
    monkeypatch.setattr(files, "_shipped_folder", lambda: folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_path_that_exists_wins(shipped, tmp_path):
    (tmp_path / "rho_qwen").write_text("")
    assert str(find_recipe("rho_qwen")) == "rho_qwen"
    assert str(find_recipe("./rho_qwen")) == "rho_qwen"


@pytest.mark.parametrize(
    "name", ["rho_qwen", "rho_qwen.toml", "recipes/rho_qwen", "./recipes/rho_qwen.toml"]
)
def test_else_a_shipped_recipe_of_that_name(shipped, name):
    assert find_recipe(name) == shipped / "rho_qwen.toml"


def test_a_folder_of_that_name_is_no_recipe(shipped, tmp_path):
    (tmp_path / "quickstart").mkdir()
    assert find_recipe("quickstart") == shipped / "quickstart.toml"
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="mine is a folder"):
        find_recipe("mine")


def test_recipes_in_folders_have_the_folder_in_their_name(shipped):
    assert [recipe_name(path) for path in shipped_recipes()] == [
        "cpu/rho_qwen",
        "quickstart",
        "rho_qwen",
    ]
    assert find_recipe("recipes/cpu/rho_qwen.toml") == shipped / "cpu" / "rho_qwen.toml"


def test_the_error_offers_the_nearest_names(shipped, tmp_path):
    (tmp_path / "my_recipe.toml").write_text("")
    with pytest.raises(UsageError, match=r"'rho_qwn'; did you mean rho_qwen or cpu/rho_qwen"):
        find_recipe("rho_qwn")
    with pytest.raises(UsageError, match=r"did you mean my_recipe\.toml"):
        find_recipe("my_recipe")
    with pytest.raises(UsageError, match="'zzz'; kdcore recipes lists them"):
        find_recipe("zzz")


def test_a_file_that_is_missing_is_offered_to_be_written(shipped):
    for name in ("no/such/folder/zzz.toml", "rho.toml"):  # not an alias of rho_qwen
        with pytest.raises(UsageError, match=f"{name!r}; kdcore new recipe {name} --teacher"):
            find_recipe(name)


def test_the_recipes_of_this_repository_are_shipped():
    assert shipped_recipes()


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("a-11111111", "a-11111111-2", "b.teacher-22222222", "b.student-33333333")
    for age, name in enumerate(names):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "recipe.toml").write_text("")
        os.utime(run / "recipe.toml", (1000 - age, 1000 - age))
    (tmp_path / "runs" / "caches").mkdir()
    (tmp_path / "runs" / "file").write_text("")
    return tmp_path / "runs"


def test_runs_are_listed_by_when_they_were_busy_last(out):
    assert next(run.name for run in runs_in(out)) == "a-11111111"
    (out / "b.teacher-22222222" / "metrics.jsonl").write_text("")
    assert [run.name for run in runs_in(out)] == [
        "b.teacher-22222222",
        "a-11111111",
        "a-11111111-2",
        "b.student-33333333",
    ]
    assert runs_in(out / "nowhere") == []


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("runs/a-11111111", "a-11111111"),
        ("runs/a-11111111-2/", "a-11111111-2"),
        ("a-11111111", "a-11111111"),
        ("b.t", "b.teacher-22222222"),
        ("last", "a-11111111"),
    ],
)
def test_a_run_is_a_path_a_name_a_prefix_or_the_last(out, typed, name):
    assert find_run(typed, out).name == name


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("b", "several runs in .* begin with 'b': b.teacher-22222222, b.student-33333333"),
        ("c", "there is no run 'c' in"),
        ("b.techer", "the nearest are b.teacher-22222222"),
        ("runs", "runs is a folder of runs: name one of a-"),
        ("runs/caches", "runs/caches is not a run: it has no recipe.toml"),
        ("", "there is no run ''"),
    ],
)
def test_a_run_that_is_not_found_names_others(out, typed, said):
    with pytest.raises(UsageError, match=said):
        find_run(typed, out)


def test_another_folder_of_runs_is_an_out(out, tmp_path):
    with pytest.raises(UsageError, match="runs: type --out runs and name one of a-11111111"):
        find_run("runs", tmp_path / "others")


def test_no_runs_at_all(tmp_path):
    with pytest.raises(UsageError, match="holds no runs"):
        find_run("last", tmp_path)
    with pytest.raises(UsageError, match=r"'mine': there is no folder .*absent; kdcore run"):
        find_run("mine", tmp_path / "absent")


def test_finding_needs_no_torch():
    code = "import sys, kdcore.runs.folder; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
