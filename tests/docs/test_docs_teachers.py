"""docs/teachers.md: its recipes have no errors, its figures are the code's."""

import pytest
from documents import DOCS, snippets
from kdcore_cached.teacher import CachedTeacher
from kdcore_hf import HfTeacher

from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe

DOCUMENT = "teachers.md"
RECIPES = [each.text for each in snippets(DOCUMENT) if each.language == "toml"]


@pytest.mark.parametrize("text", RECIPES, ids=lambda text: text.splitlines()[0])
def test_recipes_have_no_faults(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stories.txt").write_text("One day a fox met a crow.\n" * 9)
    name = text.splitlines()[0].removeprefix("# ")
    (tmp_path / name).write_text(text)
    stage = read_recipe(name, PluginManager()).build("")
    assert stage.teacher is not None


def test_a_stored_token_takes_as_many_bytes_as_it_says():
    teacher = CachedTeacher(teacher=HfTeacher(model="some"), kind="topk", k=32)
    assert f"{teacher.bytes_per_token():.0f} bytes a token" in (DOCS / DOCUMENT).read_text()
