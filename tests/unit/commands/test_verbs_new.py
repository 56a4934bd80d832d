"""`kdcore new`: recipes that mean the same in their new place, plugins whose tests pass."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import tomli
import trove_classifiers

from kdcore import UsageError, check
from kdcore.api.kinds import KINDS
from kdcore.commands.drafts.plugin_template import KINDS as PLUGIN_KINDS
from kdcore.commands.drafts.plugin_template import check_name, files_of
from kdcore.commands.new import PluginKind, plugin, recipe
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
    with pytest.raises(UsageError, match="not a valid plugin name"):
        check_name(name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("json", "loss"), ("torch", "loss"), ("kl", "loss"), ("kdcore-hf", "data")),
        *(("kdcore-stories", "data"), ("kdcore-bpe", "tokenizer"), ("kdcore-opd", "loss")),
        *(("kdcore-run", "verb"), ("kdcore-show", "verb"), ("kdcore-agreement", "eval")),
    ],
)
def test_names_that_are_taken_are_refused(name, kind):
    with pytest.raises(UsageError, match=r"already|kdcore's own"):
        check_name(name, kind)


def test_a_name_is_taken_by_its_own_kind_only():
    check_name("kdcore-kl", "data")


def test_a_folder_that_exists_is_left_alone(here):
    (here / "mine").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        plugin("mine")


FILES = {
    *("README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", ".github/workflows/test.yml"),
    *("kdcore_my_own.py", "tests/test_kdcore_my_own.py", "my-own.toml"),
}


def test_there_is_a_template_for_every_kind():
    assert set(PLUGIN_KINDS) == {*KINDS, "verb"} == {*get_args(PluginKind)}


@pytest.mark.parametrize("kind", PLUGIN_KINDS)
def test_the_name_is_used_everywhere(kind, here):
    files = files_of("kdcore-my_own", kind)
    assert set(files) == FILES
    project = tomli.loads(files["pyproject.toml"])["project"]
    assert project["name"] == "kdcore-my-own"
    assert "kdcore" in project["keywords"]
    assert set(project["classifiers"]) <= trove_classifiers.classifiers
    group, value = ("kdcore", "kdcore_my_own")
    if kind == "verb":
        group, value = "kdcore.commands", "kdcore_my_own:my_own"
    assert project["entry-points"] == {group: {"my-own": value}}
    dollars = {path for path, text in files.items() if "$" in text}
    assert dollars == {".github/workflows/test.yml"}  # ${{ matrix.python }}


@pytest.mark.parametrize("kind", PLUGIN_KINDS)
def test_the_new_package_is_formatted_as_ruff_has_it(kind, here):
    for path, text in files_of("kdcore-mine", kind).items():
        if path.endswith(".py"):
            done = subprocess.run(
                [sys.executable, "-m", "ruff", "format", "--line-length=100", "--diff", "-"],
                **{"input": text, "capture_output": True, "text": True},
            )
            assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLUGIN_KINDS)
def test_the_new_packages_own_tests_pass(kind, here):
    plugin("kdcore-mine", kind)
    outcome = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=here / "kdcore-mine",
        env={**os.environ, "PYTHONPATH": str(here / "kdcore-mine")},
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == 0, outcome.stdout
    assert f"{1 if kind == 'verb' else 2} passed" in outcome.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_new_component_is_used_by_its_recipe(kind, here):
    plugin("kdcore-mine", kind)
    text = (here / "kdcore-mine" / "mine.toml").read_text()
    recipe = {**tomli.loads(text), "requires": ["kdcore>=0.1"]}  # it is not installed here
    assert check(recipe, plugins=["kdcore-mine/kdcore_mine.py"]) == []
    assert '"mine"' in text


def test_the_new_plugin_brings_its_loss_and_is_verified(here, capsys):
    from kdcore.commands.plugins import plugins

    plugin("kdcore-mine")
    capsys.readouterr()
    plugins("mine", plugins=["kdcore-mine/kdcore_mine.py"])
    assert "loss mine" in capsys.readouterr().out
    plugins("mine", plugins=["kdcore-mine/kdcore_mine.py"], verified=True)
    assert re.search(r"loss mine +kept", capsys.readouterr().out)


def test_a_copy_with_its_arguments_swapped_says_their_order(here):
    with pytest.raises(UsageError, match=r"kdcore new recipe quickstart mine\.toml"):
        recipe("mine.toml", Path("quickstart"))
    assert not list(here.glob("*.toml"))
