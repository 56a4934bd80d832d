"""Recipes are merged, changed from the command line, ordered, built and written out again."""

from pathlib import Path

import pytest
import tomli
from fake_host import Ensemble, FakeHost, Fresh, Loaded, Text
from recipe_texts import SIMPLE, STAGED, TAUGHT

from kdcore.each import expand
from kdcore.errors import UsageError
from kdcore.options import Schedule
from kdcore.recipe import read_recipe


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(text, *, sets=(), logs=(), host=None, **files):
    for name, content in {"r": text, **files}.items():
        Path(f"{name}.toml").write_text(content)
    return read_recipe("r.toml", host or FakeHost(), sets=sets, logs=logs)


def table(text, *sets, stage="", **files):
    """The merged table of a stage."""
    recipe = read(text, sets=sets, **files)
    return next(each.table for each in recipe.stages if each.name == stage)


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


def test_loggers_of_the_command_line():
    assert [one.name for one in read(SIMPLE, logs=["tracker"]).build().loggers] == [
        "files",
        "tracker",
    ]
    text = STAGED + '[[stage.two.log]]\nuse = "tracker"\nto = "trackio"\n'
    recipe = read(text, logs=["tracker"])
    assert [one.name for one in recipe.build("one").loggers] == ["files", "tracker"]
    assert [getattr(one, "to", "") for one in recipe.build("two").loggers] == ["", "trackio"]


# ---- merging


def test_a_recipe_extends_another_beside_it(here):
    (here / "sub").mkdir()
    (here / "sub" / "base.toml").write_text('extends = "deeper.toml"\nseed = 3\nname = "base"\n')
    (here / "sub" / "deeper.toml").write_text(TAUGHT)
    recipe = read('extends = "sub/base.toml"\n[train]\nlr = 1e-3\n')
    assert recipe.name == "r"
    merged = recipe.stages[0].table
    assert (merged["seed"], merged["train"]) == (3, {"lr": 1e-3, "epochs": 3})


def test_tables_merge_and_lists_replace():
    merged = table(
        'extends = "b.toml"\n[data]\nconfig = "c"\n[[loss]]\nuse = "kl"\n[train]\nbatch = 2\n',
        b=TAUGHT,
    )
    assert merged["data"] == {"use": "text", "path": "p", "config": "c"}
    assert merged["loss"] == [{"use": "kl"}]
    assert merged["train"] == {"lr": 1e-4, "epochs": 3, "batch": 2}


def test_a_table_with_another_use_replaces():
    assert table('extends = "b.toml"\n[data]\nuse = "fresh"\n', b=TAUGHT)["data"] == {
        "use": "fresh"
    }


def test_a_config_of_another_model_type_replaces():
    base = STAGED + '[stage.three]\n[[stage.three.loss]]\nuse = "ce"\n[stage.three.train]\nlr = 1\n'
    base += '[student.config]\nmodel_type = "llama"\nlayers = 2\n'
    more = '[stage.three.student.config]\nmodel_type = "gpt2"\nn_layer = 3\n'
    assert table(base + more, stage="three")["student"] == {
        "config": {"model_type": "gpt2", "n_layer": 3}
    }


def test_of_several_inherited_ones_the_nearest_wins():
    assert table('extends = "b.toml"\n[train]\nsteps = 5\n', b=TAUGHT)["train"] == {
        "lr": 1e-4,
        "steps": 5,
    }
    assert table(STAGED, stage="student")["train"] == {"lr": 1e-3, "batch": 16, "steps": 10}
    fresh = '[student.config]\nmodel_type = "gpt2"\n[tokenizer]\nuse = "bpe"\n'
    merged = table('extends = "b.toml"\n' + fresh, b=TAUGHT)
    assert merged["student"] == {"config": {"model_type": "gpt2"}}


def test_use_none_removes():
    removing = '[teacher]\nuse = "none"\n[[eval]]\nuse = "none"\n[[loss]]\nuse = "ce"\n'
    merged = table('extends = "b.toml"\n' + removing, b=TAUGHT + '[[eval]]\nuse = "samples"\n')
    assert "teacher" not in merged
    assert merged["eval"] == []
    assert "tokenizer" not in table(STAGED + '[stage.two.tokenizer]\nuse = "none"\n', stage="two")
    recipe = read(
        'extends = "b.toml"\n[stage.two]\nuse = "none"\n', b=STAGED.replace("@two", "@one")
    )
    assert [stage.name for stage in recipe.stages] == ["one", "student"]


def test_requirements_of_all_files_count():
    recipe = read(
        'extends = "b.toml"\nrequires = ["pydantic"]\n', b='requires = ["kdcore"]\n' + SIMPLE
    )
    assert recipe.requires == ["pydantic", "kdcore"]


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


# ---- --set


@pytest.mark.parametrize(
    ("change", "path", "value"),
    [
        ("train.lr=3e-5", ("train", "lr"), 3e-5),
        ("train.betas=[0.8, 0.9]", ("train", "betas"), [0.8, 0.9]),
        ("data.path=data.json", ("data", "path"), "data.json"),
        ("data.path=a=b", ("data", "path"), "a=b"),
        ('data.path="3"', ("data", "path"), "3"),
        ("loss.2.temperature=4", ("loss", 1, "temperature"), 4),
        ("loss.kl.temperature=4", ("loss", 1, "temperature"), 4),
        ("loss.1.weight=2", ("loss", 0, "weight"), 2),
        ("loss.ce={use='kl'}", ("loss", 0), {"use": "kl"}),
        ('student={model="x"}', ("student",), {"model": "x"}),
        ('student."model"=x', ("student", "model"), "x"),
        ("seed=3", ("seed",), 3),
        ("selection={use='random', keep=0.5}", ("selection",), {"use": "random", "keep": 0.5}),
        ("student.patch=[{use='init'}]", ("student", "patch"), [{"use": "init"}]),
        (" train.batch = 4", ("train", "batch"), 4),
    ],
)
def test_set_puts_a_value(change, path, value):
    found = table(TAUGHT, change)
    for part in path:
        found = found[part]
    assert found == value
    assert type(found) is type(value)


def test_set_replaces_tables_whole():
    merged = table(TAUGHT, "train={lr=1, steps=2}")
    assert merged["train"] == {"lr": 1, "steps": 2}
    merged = table(STAGED, "stage.one.train={lr=1, steps=2}", stage="one")
    assert merged["train"] == {"lr": 1, "steps": 2}


def test_set_of_one_duration_removes_the_others():
    assert table(TAUGHT, "train.steps=10")["train"] == {"lr": 1e-4, "steps": 10}


def test_set_of_nothing_removes():
    assert "seed" not in table(TAUGHT, "seed=")
    assert [loss["use"] for loss in table(TAUGHT, "loss.kl=", "teacher=")["loss"]] == ["ce"]
    assert table(TAUGHT, "train.epochs=", "train.tokens=9")["train"] == {"lr": 1e-4, "tokens": 9}


def test_set_removes_from_a_stage_what_it_inherits():
    assert table(STAGED, "stage.one.train.batch=", stage="one")["train"] == {
        "lr": 1e-4,
        "epochs": 4,
    }
    merged = table(STAGED, "stage.two.tokenizer=", stage="two")
    assert "tokenizer" not in merged


def test_set_builds_a_table_bit_by_bit():
    merged = table(TAUGHT, "selection.use=random", "selection.keep=0.5")
    assert merged["selection"] == {"use": "random", "keep": 0.5}


def test_set_of_another_use_keeps_the_options_that_both_have():
    recipe = read(TAUGHT, sets=["loss.kl.use=skew-kl", "loss.kl.skew=0.2"])
    assert recipe.stages[0].table["loss"][1] == {"use": "skew-kl", "temperature": 2.0, "skew": 0.2}
    assert recipe.notes == []
    recipe = read(TAUGHT, sets=["loss.kl.use=ce", "loss.2.weight=3", "teacher="])
    assert recipe.stages[0].table["loss"][1] == {"use": "ce", "weight": 3}
    assert recipe.notes == ["loss.2 is now 'ce', which has no temperature: dropped"]


def test_set_of_another_use_in_nested_components():
    members = "stage.student.teacher.members.1"
    recipe = read(
        STAGED,
        sets=[
            f"{members}.use=stored",
            f"{members}.teacher={{use='hf', model='@one'}}",
            f"{members}.kind=topk",
        ],
    )
    member = recipe.stages[-1].table["teacher"]["members"][0]
    assert member == {"use": "stored", "teacher": {"use": "hf", "model": "@one"}, "kind": "topk"}
    said = "stage.student.teacher.members.1 is now 'stored', which has no model: dropped"
    assert recipe.notes == [said]


def test_set_in_a_stage():
    merged = table(STAGED, "stage.student.loss.kl.use=skew-kl", stage="student")
    assert merged["loss"][1] == {"use": "skew-kl", "temperature": 2.0}
    assert table(STAGED, "stage.two.seed=5", stage="two")["seed"] == 5


def test_set_in_a_list_that_a_stage_inherits():
    text = STAGED + '[[eval]]\nuse = "samples"\ntop_k = 3\n'
    merged = table(text, "stage.one.eval.samples.top_k=5", stage="one")
    assert merged["eval"] == [{"use": "samples", "top_k": 5}]
    assert table(text, "stage.one.eval.samples.top_k=5", stage="two")["eval"][0]["top_k"] == 3


def test_the_top_level_is_set_before_the_stages():
    sets = ["stage.one.train.warmup=3", "train.batch=4"]
    assert table(STAGED, *sets, stage="one")["train"] == {
        "epochs": 4,
        "batch": 4,
        "lr": 1e-4,
        "warmup": 3,
    }


def test_set_says_which_stages_it_does_not_reach():
    assert read(STAGED, sets=["train.epochs=2"]).notes == [
        "train.epochs is set, but where stages say otherwise: stage.student.train.steps"
    ]


def test_the_name_can_be_set():
    assert read(SIMPLE, sets=["name=other"]).name == "other"


# ---- --each


def test_each_multiplies():
    assert expand(["a=1"], []) == [("", ["a=1"])]
    variants = expand(["a=1"], ["loss.kl.use=kl,skew-kl", "seed=0,1"])
    assert [label for label, _ in variants] == [
        "loss.kl.use=kl seed=0",
        "loss.kl.use=kl seed=1",
        "loss.kl.use=skew-kl seed=0",
        "loss.kl.use=skew-kl seed=1",
    ]
    assert variants[3][1] == ["a=1", "loss.kl.use=skew-kl", "seed=1"]


def test_each_splits_at_the_commas_outside():
    values = '[0.9, 0.99],{a = "x,]", b = [1, 2]},"p,q",it\'s'
    assert [label for label, _ in expand([], [f"k={values}"])] == [
        "k=[0.9, 0.99]",
        'k={a = "x,]", b = [1, 2]}',
        'k="p,q"',
        "k=it's",
    ]


@pytest.mark.parametrize("each", ["seed", "seed=", "=1,2", "seed=1,,2", "seed=1,"])
def test_each_needs_values(each):
    with pytest.raises(UsageError, match="write K=a,b,c"):
        expand([], [each])


def test_each_takes_a_key_once():
    with pytest.raises(UsageError, match="--each seed is given twice"):
        expand([], ["seed=1", "seed=2"])


def test_each_may_change_a_use_and_an_option_of_it():
    for _, sets in expand([], ["loss.kl.use=kl,skew-kl", "loss.kl.temperature=1,4"]):
        assert table(TAUGHT, *sets)["loss"][1]["temperature"] in (1, 4)


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
    resolved = recipe.resolved(stage, finals)
    (here / "resolved.toml").write_text(resolved)
    again = read_recipe("resolved.toml", FakeHost())
    (only,) = again.stages
    assert again.resolved(only.name) == resolved
    assert again.build(only.name).run_name == recipe.build(stage).run_name
    before, after = recipe.build(stage, finals), again.build(only.name)
    assert [type(one) for one in before.components()] == [type(one) for one in after.components()]


def test_resolved_recipes_show_every_default():
    recipe = tomli.loads(read(TAUGHT + '[[log]]\nuse = "tracker"\n').resolved())
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


# ---- names


def test_a_shipped_recipe_is_found_from_anywhere_and_says_so(monkeypatch, here):
    from kdcore import finding

    shipped = here / "package" / "recipes"
    (shipped / "cpu").mkdir(parents=True)
    (shipped / "simple.toml").write_text(SIMPLE)
    (shipped / "cpu" / "small.toml").write_text('extends = "../simple.toml"\n')
    monkeypatch.setattr(finding, "_shipped_folder", lambda: shipped)
    assert read_recipe("simple", FakeHost()).notes == []
    assert read_recipe("package/recipes/simple.toml", FakeHost()).notes == []
    assert read_recipe("cpu/small", FakeHost()).name == "small"
    (note,) = read_recipe("recipes/simple.toml", FakeHost()).notes
    assert note == f"recipes/simple.toml is not here: {shipped / 'simple.toml'} is used"
    (here / "own.toml").write_text('extends = "simple"\n')
    assert read_recipe("own.toml", FakeHost()).build().train.epochs == 1
