"""`kdcore schema`: a third party's validator says of recipes what `check` says."""

import json

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as some
from jsonschema import Draft202012Validator

from kdcore import RecipeError
from kdcore.api.kinds import KINDS
from kdcore.api.options import option_fields
from kdcore.commands.schema import schema, schema_of
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.files import find_recipe, recipe_name, shipped_recipes
from kdcore.recipe.recipe import read_recipe

pytestmark = pytest.mark.slow

HOST = PluginManager()
SCHEMA = json.loads(json.dumps(schema_of(HOST)))  # as an editor reads it
VALIDATOR = Draft202012Validator(SCHEMA)
WHOLE = {
    "student": {"model": "m"},
    "data": {"use": "stories"},
    "loss": [{"use": "ce"}],
    "train": {"lr": 1e-3, "steps": 1},
}


def with_(path, value):
    """WHOLE with another value at a path; None removes."""
    changed = json.loads(json.dumps(WHOLE))
    *way, last = path
    here = changed
    for step in way:
        here = here.setdefault(step, {}) if isinstance(step, str) else here[step]
    if value is None:
        del here[last]
    elif last == "+":
        here.append(value)
    else:
        here[last] = value
    return changed


def test_it_is_a_schema():
    Draft202012Validator.check_schema(SCHEMA)


def test_it_is_what_the_verb_prints(capsys):
    schema()
    assert json.loads(capsys.readouterr().out) == SCHEMA


@pytest.mark.parametrize("name", [recipe_name(path) for path in shipped_recipes()])
def test_shipped_recipes_are_valid(name):
    table = tomli.loads(find_recipe(name).read_text())
    assert [error.message for error in VALIDATOR.iter_errors(table)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_component_and_option_is_in_it(kind):
    for name, provided in HOST.provided(kind).items():
        (one,) = [
            each
            for each in SCHEMA["$defs"][kind]["anyOf"]
            if each["properties"]["use"]["const"] == name
        ]
        assert option_fields(provided.cls).keys() <= one["properties"].keys()


GOOD = {
    "as it is": WHOLE,
    "a weight with a schedule": with_(["loss", 0, "weight"], {"start": 1.0, "end": 0.0}),
    "where a whole number is a number": with_(["train", "lr"], 1),
    "one of two types": with_(["train", "chunk"], 64),
    "a config": with_(["student"], {"config": {"model_type": "llama"}})
    | {"tokenizer": {"use": "bpe"}},
    "a patch": with_(["student", "patch"], [{"use": "init"}]),
    "a teacher inside one": with_(
        ["teacher"], {"use": "cached", "teacher": {"use": "hf", "model": "m"}}
    )
    | {"loss": [{"use": "kl"}]},
}
STAGED = {
    "what stages bring": {"stage": {"a": {"train": {"lr": 0.1}}}, **WHOLE},
    "parts in two places": {"data": {"block": 64}, "stage": {"a": {"data": {"use": "stories"}}}},
    "what is removed": {"extends": "quickstart", "teacher": {"use": "none"}},
}
BAD = {
    "an unknown table": with_(["trian"], {}),
    "an unknown key": with_(["train", "stepz"], 3),
    "an unknown option": with_(["data", "storys"], 3),
    "an unknown component": with_(["data", "use"], "storys"),
    "no use": with_(["data", "use"], None),
    "no train": with_(["train"], None),
    "no loss": with_(["loss"], None),
    "a text for a number": with_(["train", "lr"], "high"),
    "a number below its range": with_(["train", "lr"], 0),
    "a share above one": with_(["train", "min_lr"], 1.5),
    "a choice that is none": with_(["train", "schedule"], "cosin"),
    "too few items": with_(["train", "betas"], [0.9]),
    "two rivals": with_(["train", "epochs"], 1),
    "no length": with_(["train", "steps"], None),
    "true for a number": with_(["train", "steps"], True),
    "a table for a list": with_(["loss"], {"use": "ce"}),
    "a weight that is none": with_(["loss", 0, "weight"], {"start": 1}),
    "a teacher that is none": with_(["teacher"], {"use": "cached", "teacher": {"use": "nobody"}}),
    "a seed below 0": with_(["seed"], -1),
}


@pytest.mark.parametrize("case", GOOD)
def test_what_check_takes_is_valid(case, tmp_path):
    assert [error.message for error in VALIDATOR.iter_errors(GOOD[case])] == []


@pytest.mark.parametrize("case", STAGED)
def test_what_is_inherited_may_be_left_out(case):
    assert [error.message for error in VALIDATOR.iter_errors(STAGED[case])] == []


@pytest.mark.parametrize("case", BAD)
def test_what_check_refuses_is_not_valid(case, tmp_path):
    import tomli_w

    (tmp_path / "r.toml").write_text(tomli_w.dumps(BAD[case]))
    with pytest.raises(RecipeError):
        read_recipe(str(tmp_path / "r.toml"), HOST)
    assert not VALIDATOR.is_valid(BAD[case])


@given(some.text(min_size=1, max_size=8), some.sampled_from(["train", "data", "student"]))
def test_no_unknown_key_is_valid(key, table):
    known = SCHEMA["properties"][table].get("properties", {})
    stories = option_fields(HOST.provided("data")["stories"].cls)
    if key not in known and key not in stories and key != "use":
        assert not VALIDATOR.is_valid(with_([table, key], 1))


def test_a_plugin_file_is_in_it(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from kdcore import Loss, component, hookimpl\n"
        "@component\n"
        "class Mine(Loss):\n"
        '    """Mine."""\n'
        '    name = "mine"\n'
        "    strength: float = 2.0\n"
        "    def per_token(self, student, teacher, labels): ...\n"
        "@hookimpl\n"
        "def kdcore_losses(): return [Mine]\n"
    )
    found = schema_of(PluginManager(files=[tmp_path / "mine.py"]))
    recipe = with_(["loss", "+"], {"use": "mine", "strength": 3.0, "weight": 0.5})
    assert Draft202012Validator(found).is_valid(recipe)
    assert not VALIDATOR.is_valid(recipe)


@pytest.mark.parametrize("table", ["student", "train", "resources"])
def test_an_editor_describes_every_option_of_the_engine(table):
    undescribed = [
        key
        for key, found in SCHEMA["properties"][table]["properties"].items()
        if "$ref" not in found and not found.get("description")
    ]
    assert undescribed == []


def test_an_option_without_a_description_has_the_sentences_of_the_docstring_that_name_it():
    of_text = next(
        each
        for each in SCHEMA["$defs"]["data"]["anyOf"]
        if each["properties"]["use"]["const"] == "text"
    )["properties"]
    assert of_text["skip"]["description"].startswith("`fraction` is the share")
    assert "longer than a row" in of_text["cut"]["description"]  # of the base class
