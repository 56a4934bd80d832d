"""docs/coming-from.md: every recipe in it runs, every key in its tables is one."""

import re

import pytest
from documents import DOCS
from own_models import lay_own_models

import kdcore

TEXT = (DOCS / "coming-from.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"```toml\n# (\w+\.toml)\n(.*?)```", TEXT, re.S))
SECTIONS = re.split(r"^## ", TEXT, flags=re.M)[1:]
PAIRS = [
    (re.search(r"# (\w+\.toml)", section)[1], row)
    for section in SECTIONS
    for row in re.findall(r"^\| [^|]+ \| (.+?) \| [^|]*\|$", section, re.M)
    if row not in ("kdcore", "---")
]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coming")
    lay_own_models(folder)
    for name, text in RECIPES.items():
        (folder / name).write_text(text)
    return folder


def test_there_is_a_recipe_and_a_table_for_each_tool():
    assert len(RECIPES) == len(SECTIONS) == 5
    assert {recipe for recipe, _ in PAIRS} == {*RECIPES}
    assert len(PAIRS) > 40


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs(name, here, monkeypatch):
    monkeypatch.chdir(here)
    short = ["train.steps=2", "train.eval_rows=4", "train.batch=2"]
    short += ["data.block=64", "data.template=plain"]
    result = kdcore.run(name, sets=short, plugins=["no:panel"])
    assert "nll" in result.scores


@pytest.mark.parametrize(("name", "said"), PAIRS)
def test_a_pair_of_keys_is_one(name, said, here, monkeypatch):
    monkeypatch.chdir(here)
    if said == "none":
        return
    (setting,) = re.findall(r"`([^`]+)`", said)
    key, value = setting.split(" = ", 1)
    rows = ["data.path=answers.jsonl"]
    if setting == 'data.use = "text"':
        rows.append("data.column=output")
    kdcore.check(name, sets=[f"{key}={value}", *rows])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("trl.toml", "1 * mean_all((0.5 * KL(p(1), 0.5 * p(1) + 0.5 * q(1))"),
        ("distillkit.toml", "0.5 * mean_all(4 * KL(p(2), q(2)))"),
        ("torchtune.toml", "0.25 * mean_all(KL(p(1), q(1)))"),
        ("axolotl.toml", "0.9 * mean_all(KL(p_16(1), q_16(1)))"),
        ("script.toml", "0.5 * mean_all(4 * KL(p(2), q(2)))"),
    ],
)
def test_the_objective_is_what_the_page_says(name, objective, here, monkeypatch):
    monkeypatch.chdir(here)
    (stage,) = kdcore.plan(name)
    assert objective in " ".join(stage.objective.split())
