"""Nothing that a person can type into a recipe or behind `--set` ends in a traceback."""

from pathlib import Path

import pytest
import tomli
import tomli_w
from fake_host import FakeHost
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recipe_texts import STAGED, TAUGHT

from kdcore.errors import RecipeError
from kdcore.recipe.recipe import read_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


anything = st.recursive(
    st.none().map(lambda _: "none")
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats()
    | st.sampled_from(["kl", "hf", "top", "@one", "@", "auto", "", "text", "a/b"])
    | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["use", "model", "config", "weight", "on", "stage", "x", "loss", "one"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=4,
)


def places_in(value, path=()):
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places_in(inner, (*path, key))


def is_read_or_refused(text, sets=()):
    Path("r.toml").write_text(text)
    try:
        recipe = read_recipe("r.toml", FakeHost(), sets=sets)
    except RecipeError as error:
        assert error.errors
        assert str(error)
    else:
        for stage in recipe.stages:
            recipe.identity(stage.name)
            recipe.resolved(recipe.build(stage.name))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([TAUGHT, STAGED]), st.data())
def test_any_value_in_any_place_is_read_or_refused(text, data):
    document = tomli.loads(text)
    path = data.draw(st.sampled_from(list(places_in(document))))
    table = document
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = data.draw(anything)
    is_read_or_refused(tomli_w.dumps(document))


parts = st.sampled_from(
    [
        "stage",
        "student",
        "one",
        "two",
        "loss",
        "kl",
        "1",
        "use",
        "train",
        "lr",
        "teacher",
        "model",
        "members",
        "data",
        "tokenizer",
        "seed",
        "name",
        "config",
        "eval",
        '"',
        "betas",
        "none",
    ]
)
values = st.sampled_from(
    [
        "",
        "1",
        "0.5",
        "kl",
        "hf",
        "none",
        "stored",
        "{use='kl'}",
        "[]",
        "{}",
        "[{use='ce'}]",
        "'",
        "nan",
    ]
)
changes = st.builds(
    lambda path, value: f"{'.'.join(path)}={value}", st.lists(parts, max_size=5), values
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([TAUGHT, STAGED]), st.lists(changes, max_size=3))
def test_any_change_is_made_or_refused(text, sets):
    is_read_or_refused(text, sets)
