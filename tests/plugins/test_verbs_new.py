"""`kdcore new`: recipes that mean the same in their new place, plugins whose tests pass."""

import os
import subprocess
import sys

import pytest
import tomli

from kdcore import UsageError
from kdcore.commands.new import plugin, recipe
from kdcore.commands.plugin_template import check_name, files_of
from kdcore.recipe.files import find_recipe

pytestmark = pytest.mark.slow


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_shipped_recipe_is_copied_as_it_is(here, capsys):
    recipe("quickstart")
    assert (here / "quickstart.toml").read_text() == find_recipe("quickstart").read_text()
    assert "kdcore run quickstart.toml" in capsys.readouterr().out


def test_a_recipe_under_another_name_in_another_folder(here):
    recipe("quickstart", here / "deep" / "mine")
    assert (here / "deep" / "mine.toml").exists()


def test_nothing_is_overwritten(here):
    (here / "quickstart.toml").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        recipe("quickstart")
    assert (here / "quickstart.toml").read_text() == "mine"


def test_extends_means_the_same_file_from_the_new_place(here):
    (here / "base.toml").write_text("seed = 1\n")
    (here / "over.toml").write_text('# mine\nextends = "base.toml"  # the base\n[train]\nlr = 1\n')
    recipe("over.toml", here / "sub" / "new.toml")
    text = (here / "sub" / "new.toml").read_text()
    assert tomli.loads(text)["extends"] == "../base.toml"
    assert text.startswith("# mine\n") and text.endswith("[train]\nlr = 1\n")


def test_a_copy_of_a_shipped_recipe_extends_the_shipped_one(here):
    shipped = find_recipe("rho_qwen")
    (here / "rho_qwen.toml").write_text("seed = 1\n")  # another file of the same name
    recipe("rho_qwen_all")
    extends = tomli.loads((here / "rho_qwen_all.toml").read_text())["extends"]
    assert find_recipe(extends, here) == shipped


def test_an_unknown_recipe_has_suggestions(here):
    with pytest.raises(UsageError, match="rho_qwen"):
        recipe("rho_qwn")


@pytest.mark.parametrize("name", ["kdcore", "losses", "kdcore_hf", "kdcore-panel", "kdcore_bpe"])
def test_names_of_kdcores_own_are_refused(name):
    with pytest.raises(UsageError, match="kdcore's own"):
        check_name(name)


@pytest.mark.parametrize("name", ["Mine", "my plugin", "../mine", "1st", "class", "a--b", ""])
def test_names_that_are_none_are_refused(name):
    with pytest.raises(UsageError, match="no name for a plugin"):
        check_name(name)


@pytest.mark.parametrize("name", ["json", "torch", "kl"])
def test_names_that_are_taken_are_refused(name):
    with pytest.raises(UsageError, match="already"):
        check_name(name)


def test_a_folder_that_exists_is_left_alone(here):
    (here / "mine").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        plugin("mine")


def test_the_name_is_used_everywhere():
    files = files_of("kdcore-my_own")
    assert set(files) == {
        *("README.md", "pyproject.toml", "kdcore_my_own.py", "tests/test_kdcore_my_own.py")
    }
    project = tomli.loads(files["pyproject.toml"])
    assert project["project"]["name"] == "kdcore-my-own"
    assert project["project"]["entry-points"]["kdcore"] == {"my-own": "kdcore_my_own"}
    assert "class MyOwnLoss(Loss)" in files["kdcore_my_own.py"]
    assert not any("$" in text for text in files.values())


@pytest.mark.slow
def test_the_new_plugins_own_tests_pass(here):
    plugin("kdcore-mine")
    outcome = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=here / "kdcore-mine",
        env={**os.environ, "PYTHONPATH": str(here / "kdcore-mine")},
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == 0, outcome.stdout
    assert "2 passed" in outcome.stdout


def test_the_new_plugin_brings_its_loss(here, capsys):
    from kdcore.commands.plugins import plugins

    plugin("kdcore-mine")
    capsys.readouterr()
    plugins("mine", plugins=["kdcore-mine/kdcore_mine.py"])
    assert "loss mine" in capsys.readouterr().out
