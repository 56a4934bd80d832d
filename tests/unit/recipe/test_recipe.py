"""Recipes are merged, changed from the command line, ordered, built and written out again."""

import subprocess
import sys
from pathlib import Path

import pytest
from fake_host import Ensemble, FakeHost, Files, Fresh, Loaded, Text
from recipe_texts import SIMPLE, STAGED, TAUGHT, read

from kdcore.api.schedule import Schedule
from kdcore.errors import RecipeError
from kdcore.recipe.assemble import assemble
from kdcore.recipe.recipe import read_recipe


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- what a recipe is made of


def test_a_recipe_without_stages_is_one_run():
    recipe = read(TAUGHT)
    stage = recipe.build()
    assert (recipe.name, [each.name for each in recipe.stages]) == ("r", [""])
    assert (stage.run_name, stage.seed, stage.scope) == ("r", 7, "step")
    assert (stage.train.lr, stage.train.epochs, stage.train.batch) == (1e-4, 3, 8)
    assert stage.train.betas == [0.9, 0.999]
    assert isinstance(stage.teacher, Loaded)
    assert stage.tokenizer is None
    assert stage.tokenizer_data is stage.data
    assert [(t.label, t.use, t.weight, t.on) for t in stage.terms] == [
        ("ce", "ce", 0.5, "kept"),
        ("kl", "kl", 1.0, "kept"),
    ]


def test_terms_of_one_loss_have_labels_of_their_own():
    stage = read(TAUGHT + '[[loss]]\nuse = "kl"\n[[loss]]\nuse = "ce"\n').build()
    assert [term.label for term in stage.terms] == ["ce", "kl", "kl.2", "ce.2"]


def test_a_weight_may_follow_a_schedule():
    weight = "weight = {start = 1.0, end = 0.2, until = 0.5}"
    term = read(TAUGHT.replace("weight = 0.5", weight)).build().terms[0]
    assert [term.weight_at(done) for done in (0, 0.25, 0.5, 0.9)] == [1.0, 0.6, 0.2, 0.2]
    assert Schedule(start=0.1, end=0.3).at(1.0) == 0.3


def test_the_seed_of_everything_nested_is_listed():
    stage = read(STAGED).build("student")
    assert [type(one) for one in stage.components()].count(Loaded) == 2
    assert sum(isinstance(one, Ensemble) for one in stage.components()) == 1
    assert len({id(one) for one in stage.components()}) == len(stage.components())


def test_toml_1_1_is_understood():
    text = SIMPLE.replace('use = "text"\npath = "p"', "")
    inline = 'data = {\n  use = "text",  # a comment\n  path = "\\x70\\e",\n}\n'
    assert read(inline + text.replace("[data]\n", "")).build().data.path == "p\x1b"


def test_a_byte_order_mark_and_windows_lines_are_understood(here):
    (here / "w.toml").write_bytes(b"\xef\xbb\xbf" + SIMPLE.replace("\n", "\r\n").encode())
    assert read_recipe("w.toml", FakeHost()).build().train.epochs == 1


def test_every_run_has_the_evals_and_loggers_that_are_always_on():
    stage = read(SIMPLE).build()
    assert [one.name for one in stage.evals] == ["perplexity"]
    assert [one.name for one in stage.loggers] == ["files"]
    stage = read(SIMPLE, host=FakeHost(off=["perplexity", "files"])).build()
    assert (stage.evals, stage.loggers) == ([], [])
    stage = read(SIMPLE + '[[log]]\nuse = "files"\nfolder = "x"\n').build()
    assert [(one.name, one.folder) for one in stage.loggers] == [("files", "x")]


def test_what_is_always_on_does_not_vanish_where_two_plugins_bring_it():
    twice = FakeHost(off=["files"], twice={"logger": Files})
    with pytest.raises(RecipeError, match="the logger 'files' comes from two plugins"):
        read(SIMPLE, host=twice)


def test_loggers_of_the_command_line():
    assert [one.name for one in read(SIMPLE, logs=["tracker"]).build().loggers] == [
        "files",
        "tracker",
    ]
    text = STAGED + '[[stage.two.log]]\nuse = "tracker"\nto = "trackio"\n'
    recipe = read(text, logs=["tracker"])
    assert [one.name for one in recipe.build("one").loggers] == ["files", "tracker"]
    assert [getattr(one, "to", "") for one in recipe.build("two").loggers] == ["", "trackio"]


# ---- stages


def test_stages_run_in_the_order_of_their_references():
    recipe = read(STAGED)
    assert [(stage.name, stage.needs) for stage in recipe.stages] == [
        ("one", ()),
        ("two", ("one",)),
        ("student", ("one", "two")),
    ]
    assert recipe.build("student").run_name == "r.student"


def test_without_references_stages_run_in_file_order():
    text = STAGED.replace('"@one"', '"m"').replace('"@two"', '"m"')
    assert [stage.name for stage in read(text).stages] == ["student", "one", "two"]


def test_references_become_folders():
    recipe = read(STAGED)
    found = {"one": Path("runs/one/final"), "two": Path("runs/two/final")}
    members = recipe.build("student", found).teacher.members
    assert [member.model for member in members] == ["runs/one/final", "runs/two/final"]
    assert recipe.build("two", found).student.model == "runs/one/final"
    assert recipe.build("two").student.model == "@one"


def test_a_stage_is_put_together_once_but_for_folders_and_for_a_second_caller(monkeypatch):
    made = []

    def counted(table, names, *rest):
        made.append(names[0])
        return assemble(table, names, *rest)

    monkeypatch.setattr("kdcore.recipe.recipe.assemble", counted)
    recipe = read(STAGED)
    assert made == ["one", "two", "student"]
    folders = {"one": Path("1"), "two": Path("2")}
    first = recipe.build("one", folders)
    assert made[3:] == [] and first.run_name == "r.one"
    assert recipe.build("one").data is not first.data
    assert recipe.build("student", folders).teacher.members[0].model == "1"
    assert made[3:] == ["one", "student"]


def test_a_tokenizer_at_the_top_is_trained_on_the_data_there():
    recipe = read(STAGED + '[stage.two.data]\nuse = "fresh"\n')
    stage = recipe.build("two")
    assert isinstance(stage.data, Fresh)
    assert isinstance(stage.tokenizer_data, Text)
    assert recipe.build("one").tokenizer_data.path == "p"
    own = read(STAGED + '[stage.two.data]\nuse = "fresh"\n[stage.two.tokenizer]\nuse = "bpe"\n')
    assert isinstance(own.build("two").tokenizer_data, Fresh)


def test_without_data_at_the_top_it_is_the_first_stages():
    text = STAGED.replace('[data]\nuse = "text"\npath = "p"\n', "")
    for name in ("student", "one", "two"):
        text += f'[stage.{name}.data]\nuse = "text"\npath = "{name}"\n'
    recipe = read(text)
    assert recipe.build("student").tokenizer_data.path == "one"
    assert recipe.build("one").tokenizer_data.path == "one"


# ---- texts


def test_the_text_is_as_typed_under_its_name():
    assert read(SIMPLE).text == f'name = "r"\n{SIMPLE}'
    assert read('name = "n"\n' + SIMPLE).text == 'name = "n"\n' + SIMPLE


def test_the_text_of_a_merged_recipe_stands_alone(here):
    recipe = read(
        'extends = "b.toml"\nseed = 2\n', sets=["train.steps=4"], logs=["tracker"], b=TAUGHT
    )
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "recipe.toml").write_text(recipe.text)
    again = read_recipe("elsewhere/recipe.toml", FakeHost())
    assert again.name == "r"
    assert again.stages[0].table == recipe.stages[0].table
    assert again.identity() == recipe.identity()


# ---- names


def test_a_shipped_recipe_is_found_from_anywhere_and_says_so(monkeypatch, here):
    from kdcore.recipe import files

    shipped = here / "package" / "recipes"
    (shipped / "cpu").mkdir(parents=True)
    (shipped / "simple.toml").write_text(SIMPLE)
    (shipped / "cpu" / "small.toml").write_text('extends = "../simple.toml"\n')
    monkeypatch.setattr(files, "_shipped_folder", lambda: shipped)
    assert read_recipe("simple", FakeHost()).notes == []
    assert read_recipe("package/recipes/simple.toml", FakeHost()).notes == []
    assert read_recipe("cpu/small", FakeHost()).name == "small"
    (note,) = read_recipe("recipes/simple.toml", FakeHost()).notes
    assert note == f"recipes/simple.toml is not here: {shipped / 'simple.toml'} is used"
    (here / "own.toml").write_text('extends = "simple"\n')
    assert read_recipe("own.toml", FakeHost()).build().train.epochs == 1


def test_reading_recipes_needs_no_torch():
    code = "import sys, kdcore.recipe; assert not {'torch', 'transformers'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
