"""What `--set` and `--log` change, and which changes are refused."""

import pytest
from recipe_texts import SIMPLE, STAGED, TAUGHT, errors_of, read, table


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


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


# The change, and what the message says; the text is TAUGHT or STAGED.
SETS = {
    "no equals sign": ("train.lr", "KEY= removes a key"),
    "no key": ("=3", "names no key"),
    "a comment": ("#=3", "names no key"),
    "too many digits": (f"train.steps={'9' * 5000}", "a whole number"),
    "nested too deeply": (f"train.lr={'[' * 5000}", "lr should be a number, not"),
    "an empty part": ("train..lr=3", "names no key"),
    "wrong type": ("train.lr=fast", 'a number, not "fast"'),
    "out of range": ("train.lr=-1", "greater than 0, not -1"),
    "unknown option": ("train.lrr=1", "did you mean 'lr'?"),
    "unknown table": ("trian.lr=1", "did you mean 'train'?"),
    "unknown item": ("loss.kll.temperature=4", "did you mean 'kl'?"),
    "item 0": ("loss.0.temperature=4", "there are: loss.1 (ce), loss.2 (kl)"),
    "item out of range": ("loss.3.temperature=4", "loss.1 (ce), loss.2 (kl)"),
    "items without names": ("train.betas.x=1", "a list, each item a number, not a table"),
    "no such list": ("eval.agreement.x=1", "the recipe has no eval"),
    "in a number": ("train.lr.x=1", "train.lr is 0.0001, which holds no 'x'"),
    "in a stage that is not": ("stage.studnet.seed=1", "this recipe has no stages"),
    "removing what is not there": ("train.lrr=", "did you mean 'lr'?"),
    "broken TOML": ("train={lr=", "is not TOML"),
    "unknown component": ("loss.kl.use=kk", "no loss is named 'kk'"),
    "extends": ("extends=x.toml", "extends is for files only"),
}


@pytest.mark.parametrize(("change", "said"), SETS.values(), ids=SETS)
def test_error_on_the_command_line(change, said):
    found = errors_of(TAUGHT, sets=[change])
    assert [(fault.file, fault.line, fault.column) for fault in found] == [
        (f"--set {change}", 1, 1)
    ]
    assert said in str(found[0])


def test_a_set_that_leads_to_a_stage_points_at_it():
    (fault,) = errors_of(STAGED, sets=["loss.kl.temperature=4"])
    assert "the recipe has no loss" in fault.message
    assert fault.hint == "there is stage.student.loss, stage.one.loss, stage.two.loss"
    (fault,) = errors_of(STAGED, sets=["stage.studnet.seed=1"])
    assert fault.message == "there is no stage.studnet; did you mean 'student'?"


def test_an_ambiguous_item():
    (fault,) = errors_of(TAUGHT + '[[loss]]\nuse = "kl"\n', sets=["loss.kl.weight=1"])
    assert fault.message == "2 items of loss are 'kl': say loss.2 or loss.3"


def test_an_unknown_logger_on_the_command_line():
    (fault,) = errors_of(SIMPLE, logs=["trackr"])
    assert (fault.file, fault.line) == ("--log trackr", 1)
    assert "did you mean 'tracker'?" in fault.message
