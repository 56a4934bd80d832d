"""Faulty recipes: each fault with its file, line and column, and a way out in its message."""

import pytest
from fake_host import FakeHost
from recipe_texts import SIMPLE, STAGED, TAUGHT, errors_of

from kdcore.errors import UsageError
from kdcore.recipe.recipe import read_recipe


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def changed(old, new, text=SIMPLE):
    assert text.count(old) == 1, f"{old!r} is not once in the text"
    return text.replace(old, new)


TEACHER = '[teacher]\nuse = "hf"\nmodel = "t"\n'
KL = changed('use = "ce"', 'use = "kl"') + TEACHER
STORED = 'use = "stored"\nteacher = {use = "hf", model = "t"}\n'
ENSEMBLE = """\
[teacher]
use = "ensemble"
members = [
  {use = "hf", model = "a"},
  {use = "hf", modle = "b"},
]
"""
AFTER = 14  # the first line after SIMPLE

# Text, line, column, and what the message says.
# fmt: off
FAULTS = {
    # not a recipe at all
    "unquoted text": (changed('"ce"', "ce"), 9, 7, "a text needs quotes"),
    "unclosed table": (changed("[train]", "[train"), 11, 7, "Expected ']'".lower()),
    "duplicate table": (SIMPLE + "[train]\nlr = 1\n", AFTER, 7, "a table is written once"),
    "duplicate key": (SIMPLE + "lr = 1e-4\n", AFTER, 10, "a key is given once"),
    "list and table": (SIMPLE + '[loss]\nuse = "kl"\n', AFTER, 6, "[[name]] adds an item"),
    "empty": ("", 1, 1, "needs [student], [data], [[loss]] and [train]"),
    "only a comment": ("# nothing\n", 1, 1, "kdcore new recipe"),
    "binary": (b'[student]\nmodel = "\xff\xfe"\n', 2, 10, "not UTF-8 text"),
    "zero bytes": (b"\x00\x01\x02", 1, 1, "not TOML"),
    "too many digits": (f"a = {'9' * 5000}", 1, 1, "more than 4,300 digits"),
    "deeply nested": (f"a = {'[' * 5000}", 1, 1, "nested too deeply"),
    # tables
    "no student": (changed('[student]\nmodel = "m"', ""), 1, 1, 'add [student] with model = "'),
    "no data": (changed('[data]\nuse = "text"\npath = "p"', ""), 1, 1, "add [data] with use"),
    "no loss": (changed('[[loss]]\nuse = "ce"', ""), 1, 1, "add [[loss]] with use"),
    "no train": (changed("[train]\nlr = 1e-4\nepochs = 1", ""), 1, 1, "add [train] with lr"),
    "no losses in the list": ("loss = []\n" + changed('[[loss]]\nuse = "ce"', ""), 1, 1,
        "[[loss]]"),
    "a table like no other": (SIMPLE + "[zzz]\n", AFTER, 2, "it has: name, extends"),
    "unknown table": (SIMPLE + "[teachr]\n", AFTER, 2, "did you mean 'teacher'?"),
    "unknown key at the top": ("sed = 1\n" + SIMPLE, 1, 1, "did you mean 'seed'?"),
    "table in place of a list": (changed("[[loss]]", "[loss]"), 8, 2, "write [[loss]]"),
    "list in place of a table": (changed("[data]", "[[data]]"), 4, 3, "write [data]"),
    "text in place of a table": ('teacher = "hf"\n' + SIMPLE, 1, 1, 'not "hf"'),
    # names
    "no use": (changed('use = "ce"', "weight = 1"), 8, 3, "there are: ce, kl, skew-kl"),
    "unknown component": (changed('"ce"', '"cee"'), 9, 1, "did you mean 'ce'?"),
    "use is a number": (changed('"ce"', "1"), 9, 1, "should be the name of a loss"),
    "unknown patch": (SIMPLE + '[[student.patch]]\nuse = "innit"\n', 15, 1, "did you mean 'init'?"),
    "unknown eval": (SIMPLE + '[[eval]]\nuse = "agrement"\n', 15, 1, "'agreement'"),
    "unknown logger": (SIMPLE + '[[log]]\nuse = "trackr"\n', 15, 1, "did you mean 'tracker'?"),
    # options
    "unknown option": (KL + "[[loss]]\nuse='kl'\nheat = 1\n", 19, 1, "it has: temperature"),
    "unknown engine key": (changed('"ce"', '"ce"\nwieght = 1'), 10, 1, "did you mean 'weight'?"),
    "unknown train key": (SIMPLE + "warm_up = 3\n", AFTER, 1, "did you mean 'warmup'?"),
    "unknown student key": (changed('"m"', '"m"\nmodle = 1'), 3, 1, "did you mean 'model'?"),
    "missing option": (changed('path = "p"', ""), 4, 2, "the data 'text' needs path: a text"),
    "missing lr": (changed("lr = 1e-4\n", ""), 11, 2, "[train] needs lr: a number"),
    "number in quotes": (changed("1e-4", '"1e-4"'), 12, 1, "without quotes: 1e-4"),
    "truth value as number": (changed("1e-4", "true"), 12, 1, "should be a number, not true"),
    "fraction as count": (SIMPLE + "batch = 1.5\n", AFTER, 1, "a whole number, not 1.5"),
    "a date": (SIMPLE + "batch = 2024-01-01\n", AFTER, 1, "a whole number, not 2024-01-01"),
    # ranges
    "lr 0": (changed("1e-4", "0"), 12, 1, "greater than 0, not 0"),
    "lr nan": (changed("1e-4", "nan"), 12, 1, "lr should be"),
    "lr inf": (changed("1e-4", "inf"), 12, 1, "finite"),
    "batch 0": (SIMPLE + "batch = 0\n", AFTER, 1, "at least 1, not 0"),
    "micro_batch": (SIMPLE + 'micro_batch = "all"\n', AFTER, 1, '"auto" or a whole number'),
    "chunk": (SIMPLE + "chunk = -1\n", AFTER, 1, "at least 1, not -1"),
    "beta 1": (SIMPLE + "betas = [0.9, 1.0]\n", AFTER, 15, "betas.2 should be less than 1"),
    "three betas": (SIMPLE + "betas = [0.9, 0.9, 0.9]\n", AFTER, 1, "at most 2 items, not 3"),
    "warmup": (SIMPLE + "warmup = 2.5\n", AFTER, 1, "a whole number of steps, or a share below 1"),
    "warmup below 0": (SIMPLE + "warmup = -1\n", AFTER, 1, "at least 0, not -1"),
    "min_lr": (SIMPLE + "min_lr = 2\n", AFTER, 1, "at most 1, not 2"),
    "schedule": (SIMPLE + 'schedule = "cosin"\n', AFTER, 1, "did you mean 'cosine'?"),
    "precision": (SIMPLE + 'precision = "bf32"\n', AFTER, 1, '"fp16" or "fp32", not "bf32"'),
    "eval_every": (SIMPLE + 'eval_every = "step"\n', AFTER, 1, '"epoch" or a whole number'),
    "save_every": (SIMPLE + "save_every = 0\n", AFTER, 1, "at least 1, not 0"),
    "temperature": (KL + "[[loss]]\nuse='kl'\ntemperature=0\n", 19, 1, "greater than 0, not 0"),
    "skew": (KL + "[[loss]]\nuse='skew-kl'\nskew=1\n", 19, 1, "skew lies in [0, 1)"),
    "seed below 0": ("seed = -1\n" + SIMPLE, 1, 1, "from 0 to 4294967295, not -1"),
    "seed is a text": ('seed = "1"\n' + SIMPLE, 1, 1,
        'a whole number from 0 to 4294967295, not "1"'),
    # weights
    "weight": (changed('"ce"', '"ce"\nweight = "1"'), 10, 1, "without quotes: 1"),
    "endless weight": (changed('"ce"', '"ce"\nweight = inf'), 10, 1, "finite"),
    "weight schedule": (changed('"ce"', '"ce"\nweight = {start = 1, end = 0, util = 0.5}'), 10, 31,
        "'until'?"),
    "half a weight schedule": (changed('"ce"', '"ce"\nweight = {start = 1}'), 10, 1,
        "a schedule needs end: a number"),
    "weight schedule until": (changed('"ce"', '"ce"\nweight = {start = 1, end = 0, until = 2}'), 10,
        31, "at most 1, not 2"),
    # exactly one of several
    "no duration": (changed("epochs = 1\n", ""), 11, 2, "one of epochs, steps and tokens"),
    "two durations": (SIMPLE + "steps = 1\n", AFTER, 1, "leave out epochs or steps"),
    "no model": (changed('model = "m"', 'dtype = "auto"'), 1, 2, "one of model and config"),
    "model and config": (changed('"m"', '"m"\nconfig = {model_type = "x"}\n[tokenizer]\nuse="bpe"'),
        3, 1, "leave out model or config"),
    "no model_type": (changed('model = "m"', 'config = {size = 3}\n[tokenizer]\nuse = "bpe"'), 2, 1,
        'such as model_type = "llama"'),
    "no tokenizer": (changed('model = "m"', 'config = {model_type = "x"}'), 2, 1,
        "add [tokenizer] with use"),
    # selections and teachers
    "dropped without selection": (changed('"ce"', '"ce"\non = "dropped"'), 10, 1,
        "this recipe has no [selection]"),
    "all without selection": (changed('"ce"', '"ce"\non = "all"'), 10, 1,
        "every token is kept: leave `on` out"),
    "on something else": (changed('"ce"', '"ce"\non = "keep"'), 10, 1, "did you mean 'kept'?"),
    "scope": (SIMPLE + '[selection]\nuse = "random"\nkeep = 1\nscope = "batch"\n', 17, 1,
        '"step" or "micro_batch", not "batch"'),
    "keep 0": (SIMPLE + '[selection]\nuse = "random"\nkeep = 0\n', 16, 1, "keep should be greater"),
    "no teacher": (changed('"ce"', '"kl"'), 9, 1, "add [teacher] with use"),
    "no teacher for an eval": (SIMPLE + '[[eval]]\nuse="agreement"\n', 15, 1, "has no [teacher]"),
    "no teacher for a selection": (SIMPLE + '[selection]\nuse = "top"\nkeep = 1\n', 15, 1,
        "'top' needs a teacher"),
    "unused teacher": (SIMPLE + TEACHER, AFTER, 2, "leave [teacher] out"),
    "teacher without logits": (changed('"ce"', '"kl"') + "[teacher]\n" + STORED, 9, 1,
        "the teacher 'stored' gives no logits"),
    "nested component": (changed('"ce"', '"kl"') + ENSEMBLE, 18, 16, "did you mean 'model'?"),
    "a component that does not fit": (changed('use = "text"\npath = "p"', 'use = "fresh"')
        + '[selection]\nuse = "top"\nkeep = 1\n[selection.reference]\n' + STORED, 16, 12,
        "cannot be stored"),
    # stages
    "reference without stages": (changed('"m"', '"@teacher"'), 2, 1, "this recipe has no stages"),
    "unknown stage": (changed('"@two"', '"@too"', STAGED), 20, 18, "no stage is called 'too'"),
    "stage that names itself": (changed('two.student]\nmodel = "@one"',
        'two.student]\nmodel = "@two"', STAGED), 42, 1, "'two' names itself"),
    "stages in a circle": (changed('one.student.config]\nmodel_type = "gpt2"',
        'one.student]\nmodel = "@two"', STAGED), 42, 1, "one needs two needs one"),
    "top-level key in a stage": (
        changed("[stage.two.student]", '[stage.two]\nname = "x"\n[stage.two.student]', STAGED), 42,
        1, "at the top level"),
    "no stages": ("stage = {}\n" + SIMPLE, 1, 1, "write [stage.NAME.train]"),
    "a stage that is no table": ("stage.lr = 1\n" + SIMPLE, 1, 7, "[stage.lr.train]"),
    "a stage named like a path": (SIMPLE + '[stage."../x"]\n', AFTER, 8, "use letters"),
    # the file's own keys
    "a name like a path": ('name = "../up"\n' + SIMPLE, 1, 1, 'name = "my_recipe"'),
    "a name with a space": ('name = "a b"\n' + SIMPLE, 1, 1, "letters, digits"),
    "a hidden name": ('name = ".x"\n' + SIMPLE, 1, 1, "letters, digits"),
    "unmet requirement": ('requires = ["kdcore>=99"]\n' + SIMPLE, 1, 13,
        "pip install 'kdcore>=99'"),
    "missing requirement": ('requires = ["kdcore", "kdcore-nobody"]\n' + SIMPLE, 1, 23,
        "pip install 'kdcore-nobody'"),
    "no requirement": ("requires = [3]\n" + SIMPLE, 1, 13, '["kdcore>=0.1"]'),
    "requires is no list": ('requires = "kdcore"\n' + SIMPLE, 1, 1, '["kdcore>=0.1"]'),
    "extends nothing": ('extends = "s.toml"\n' + SIMPLE, 1, 1, "there is no recipe 's.toml'"),
    "extends is no text": ("extends = 1\n" + SIMPLE, 1, 1, 'one path: "other.toml"'),
    "extends itself": ('extends = "r.toml"\n' + SIMPLE, 1, 1, "r.toml extends r.toml"),
}
# fmt: on


@pytest.mark.parametrize(("text", "line", "column", "said"), FAULTS.values(), ids=FAULTS)
def test_fault(text, line, column, said):
    found = errors_of(text)
    assert [(fault.file, fault.line, fault.column) for fault in found] == [("r.toml", line, column)]
    assert said in str(found[0])


def test_a_broken_plugin_is_reported_with_its_cause():
    host = FakeHost(off=["kl"], broken={"kl": "ImportError: no numpy"})
    (fault,) = errors_of(TAUGHT, host=host)
    assert (fault.line, fault.column) == (14, 1)
    assert fault.message == "the plugin that brings 'kl' is broken: ImportError: no numpy"


def test_all_errors_are_reported_at_once_each_in_its_file():
    variant = 'extends = "base.toml"\n[train]\nlr = "x"\n[selection]\nuse = "randm"\n'
    found = errors_of(variant, base=changed("epochs = 1", "epochs = 0\nbatch = 0"))
    assert [(f.file, f.line, f.column) for f in found] == [
        ("r.toml", 3, 1),
        ("r.toml", 5, 1),
        ("base.toml", 13, 1),
        ("base.toml", 14, 1),
    ]


def test_errors_in_extended_files():
    (fault,) = errors_of('extends = "base.toml"\n', base="[data\n")
    assert (fault.file, fault.line, fault.column) == ("base.toml", 1, 6)
    chain = {"a": 'extends = "b.toml"\n', "b": '\nextends = "a.toml"\n'}
    (fault,) = errors_of('extends = "a.toml"\n', **chain)
    assert (fault.file, fault.line) == ("b.toml", 2)
    assert "r.toml extends a.toml extends b.toml extends a.toml" in fault.message


def test_an_error_of_the_top_level_is_reported_once_for_all_stages():
    found = errors_of(changed("batch = 16", "batch = 0", STAGED))
    assert [(fault.line, fault.column) for fault in found] == [(10, 1)]


def test_what_a_person_reads():
    (fault,) = errors_of(changed("1e-4", '"1e-4"'))
    assert str(fault) == (
        'r.toml:12:1: lr should be a number, not "1e-4"\n'
        '    lr = "1e-4"\n'
        "    ^\n"
        "    write it without quotes: 1e-4"
    )
    (fault,) = errors_of(SIMPLE, sets=["train.lr=0"])
    assert str(fault) == "--set train.lr=0: lr should be greater than 0, not 0"


def test_the_caret_stands_right_behind_tabs():
    (fault,) = errors_of(changed("lr = 1e-4", "\tlr = 0"))
    assert (fault.source, fault.column) == (" lr = 0", 2)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing.toml", "there is no recipe 'nothing.toml'"),
        ("rr.toml", "did you mean r.toml?"),
        ("folder", "folder is a folder"),
        ("", "is a folder"),
    ],
)
def test_files_that_are_no_recipes(here, name, said):
    (here / "folder").mkdir()
    (here / "r.toml").write_text(SIMPLE)
    with pytest.raises(UsageError, match=said) as raised:
        read_recipe(name, FakeHost())
    assert raised.value.exit_code == 2
