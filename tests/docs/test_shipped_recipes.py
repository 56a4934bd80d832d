"""Every shipped recipe: no errors, and a plan of what can be known without the hub."""

import pytest

from kdcore.commands import plan as verb
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.files import recipe_name, shipped_recipes
from kdcore.recipe.recipe import read_recipe

RECIPES = [recipe_name(path) for path in shipped_recipes()]
TWINS = [name for name in RECIPES if name.startswith("cpu/")]
DIVERGENCES = ("kl", "reverse-kl", "skew-kl", "skew-reverse-kl")


@pytest.fixture(scope="module")
def host():
    return PluginManager()


@pytest.mark.parametrize("name", RECIPES)
def test_it_has_no_errors(name, host):
    recipe = read_recipe(name, host)
    assert not recipe.notes
    for stage in recipe.stages:
        built = recipe.build(stage.name)
        assert built.run_name.partition(".")[0] == recipe.name


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_extends_the_recipe_of_its_name(name, host):
    twin, big = (read_recipe(each, host) for each in (name, name.removeprefix("cpu/")))
    assert twin.name == f"{big.name}_cpu"
    if any(stage.name for stage in big.stages):
        assert {stage.name for stage in big.stages} <= {stage.name for stage in twin.stages}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_plan_tells_what_can_be_known(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    verb.plan(name)
    printed = capsys.readouterr().out
    assert "loss = " in printed
    assert ("not known" in printed) == (not printed.count("  total"))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("regime", ["", "_only_kl", "_finetune_first"])
def test_each_regime_takes_each_divergence(regime, divergence, host):
    sets = [f"stage.student.loss.kl.use={divergence}"]
    recipe = read_recipe(f"qwen_kl_sft{regime}", host, sets=sets)
    student = recipe.build("student")
    *cross_entropy, taught = student.terms
    assert (taught.use, taught.loss.temperature) == (divergence, 2.0)
    assert [(term.use, term.weight) for term in cross_entropy] == ([] if regime else [("ce", 0.5)])
    assert taught.weight == (1.0 if regime else 0.5)
    assert student.teacher.model == "@teacher"
    assert not recipe.notes


def test_the_student_of_a_regime_comes_from_where_it_should(host):
    models = {
        regime: read_recipe(f"qwen_kl_sft{regime}", host).build("student").student.model
        for regime in ("", "_only_kl", "_finetune_first", "_ce")
    }
    given = "Qwen/Qwen2.5-0.5B-Instruct"
    assert models.pop("_finetune_first") == "@finetuned"
    assert {*models.values()} == {given}
    first = read_recipe("qwen_kl_sft_finetune_first", host)
    assert [stage.name for stage in first.stages][-1] == "student"
    finetuned = first.build("finetuned")
    assert finetuned.student.model == given and finetuned.teacher is None
    assert [term.use for term in finetuned.terms] == ["ce"]


def test_all_regimes_share_one_teacher(host):
    recipes = [read_recipe(f"qwen_kl_sft{each}", host) for each in ("", "_only_kl", "_ce")]
    assert len({recipe.identity("teacher") for recipe in recipes}) == 1
    assert len({recipe.identity("student") for recipe in recipes}) == 3
    small = read_recipe(
        "qwen_kl_sft", host, sets=["stage.teacher.student.model=Qwen/Qwen2.5-3B-Instruct"]
    )
    assert small.identity("student") != recipes[0].identity("student")
