"""A stage written out runs the same thing again."""

from pathlib import Path

import pytest
import tomli
from fake_host import FakeHost
from recipe_texts import SIMPLE, STAGED, TAUGHT, read

from kdcore.recipe.recipe import read_recipe


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


RESOLVED = {
    "simple": (SIMPLE, ""),
    "taught": (TAUGHT + '[[eval]]\nuse = "samples"\nprompts = ["a\\nb"]\n', ""),
    "selected": (
        SIMPLE.replace('"ce"', '"ce"\non = "all"\nweight = {start = 1, end = 0}')
        + '[selection]\nuse = "top"\nkeep = 0.5\nscope = "micro_batch"\n'
        '[selection.reference]\nuse = "stored"\nteacher = {use = "hf", model = "t"}\n',
        "",
    ),
    "stage": (STAGED, "student"),
    "other data": (STAGED + '[stage.two.data]\nuse = "fresh"\nblock = 64\n', "two"),
}


@pytest.mark.parametrize(("text", "stage"), RESOLVED.values(), ids=RESOLVED)
def test_resolved_recipes_run_the_same_thing_again(here, text, stage):
    recipe = read(text)
    finals = {name: Path(f"runs/{name}/final") for name in ("one", "two")}
    resolved = recipe.resolved(recipe.build(stage, finals))
    (here / "resolved.toml").write_text(resolved)
    again = read_recipe("resolved.toml", FakeHost())
    (only,) = again.stages
    assert again.resolved(again.build(only.name)) == resolved
    assert again.build(only.name).run_name == recipe.build(stage).run_name
    before, after = recipe.build(stage, finals), again.build(only.name)
    assert [type(one) for one in before.components()] == [type(one) for one in after.components()]


def test_resolved_recipes_show_every_default():
    made = read(TAUGHT + '[[log]]\nuse = "tracker"\n')
    recipe = tomli.loads(made.resolved(made.build()))
    assert recipe["name"] == "r"
    assert recipe["train"]["betas"] == [0.9, 0.999]
    assert "steps" not in recipe["train"]
    assert recipe["teacher"] == {"use": "hf", "model": "t", "dtype": "auto"}
    assert recipe["loss"][1] == {
        "use": "kl",
        "temperature": 2.0,
        "scale_by_t2": True,
        "weight": 1.0,
        "on": "kept",
    }
    assert [log["use"] for log in recipe["log"]] == ["files", "tracker"]
