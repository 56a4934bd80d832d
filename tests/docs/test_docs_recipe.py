"""docs/recipe.md: every snippet in it is executed, and its table of [train] is the code's."""

import shlex
from pathlib import Path

import pytest
import tomli
from documents import DOCS, snippets
from typer.testing import CliRunner

from kdcore.api.options import option_types
from kdcore.api.train_options import TrainOptions
from kdcore.cli.main import app
from kdcore.errors import RecipeError
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.describe import resolved
from kdcore.recipe.recipe import read_recipe

DOCUMENT = "recipe.md"
SNIPPETS = snippets(DOCUMENT)
RECIPES = {
    snippet.text.splitlines()[0].removeprefix("# "): snippet.text
    for snippet in SNIPPETS
    if snippet.language == "toml"
}
COMMANDS = [
    line for snippet in SNIPPETS if snippet.language == "sh" for line in snippet.text.splitlines()
]


@pytest.fixture(scope="module")
def host():
    return PluginManager()


@pytest.fixture(autouse=True)
def written(tmp_path, monkeypatch) -> Path:
    """A folder with every recipe that the document shows, under the name in its first line."""
    monkeypatch.chdir(tmp_path)
    for name, text in RECIPES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_every_snippet_is_of_a_language_that_is_executed_here():
    assert {snippet.language for snippet in SNIPPETS} == {"toml", "sh", "text"}


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"faulty.toml"}))
def test_recipes_have_no_errors(name, host):
    recipe = read_recipe(name, host)
    for stage in recipe.stages:
        assert recipe.build(stage.name)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_find_no_errors(command, monkeypatch, host):
    monkeypatch.setattr("kdcore.cli.main.plugin_manager", lambda plugins: host)
    words = shlex.split(command)
    assert words.pop(0) == "kdcore"
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "no errors" in done.output


def test_the_errors_are_those_shown(host):
    (shown,) = (snippet.text for snippet in SNIPPETS if snippet.language == "text")
    with pytest.raises(RecipeError) as raised:
        read_recipe("faulty.toml", host)
    assert str(raised.value) == shown.strip()


def test_what_is_said_of_stages(host):
    recipe = read_recipe("staged.toml", host)
    assert [(stage.name, stage.needs) for stage in recipe.stages] == [
        ("big", ()),
        ("small", ("big",)),
    ]
    assert recipe.build("big").student.config["num_hidden_layers"] == 2
    assert recipe.build("small").student.config["hidden_size"] == 64


def test_the_table_of_train_has_every_key_and_default(host):
    rows = [line.split("|") for line in (DOCS / DOCUMENT).read_text().splitlines()]
    train = {
        key.strip(" `"): default.strip(" `")
        for row in rows
        if len(row) == 5
        for key, default in [(key, row[2]) for key in row[1].split(",")]
        if key.strip(" `") in option_types(TrainOptions)
    }
    assert train.keys() == option_types(TrainOptions).keys()
    stage = read_recipe("distil.toml", host, sets=["train={lr=1, steps=1}"]).build()
    defaults = tomli.loads(resolved(stage, "x"))["train"]
    typed = {key: each for key, each in train.items() if each not in ("required", "none")}
    del typed["mode"]  # of a recipe that keeps the best step
    assert {key: tomli.loads(f"x = {each}")["x"] for key, each in typed.items()} == {
        key: value for key, value in defaults.items() if key in typed
    }
