"""Two recipes have one identity exactly where their results are the same."""

import random
import re
from pathlib import Path

import pytest
import tomli
import tomli_w
from fake_host import Ensemble, FakeHost, Remote
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recipe_texts import SIMPLE, STAGED, TAUGHT

from kdcore.recipe.recipe import read_recipe


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def identity(text, stage="", *, sets=(), logs=(), name="r"):
    Path(f"{name}.toml").write_text(text)
    return read_recipe(f"{name}.toml", FakeHost(), sets=sets, logs=logs).identity(stage)


def test_an_identity_is_eight_digits_and_stays():
    assert re.fullmatch("[0-9a-f]{8}", identity(TAUGHT))
    # Runs that people have are found by it: change it only with a line in the changelog.
    assert identity(SIMPLE) == "7e5e7564"


@pytest.mark.parametrize(
    "change",
    [
        "name=other",
        "seed=7",
        'log=[{use="tracker"}]',
        'eval=[{use="samples"}]',
        "train.micro_batch=2",
        "train.chunk=64",
        "train.compile=true",
        "train.checkpointing=true",
        "train.workers=0",
        "train.log_every=1",
        "train.eval_every=1",
        "train.save_every=1",
        "train.save_keep=1",
        "train.lr=0.0001",
    ],
)
def test_what_cannot_change_the_result_does_not_count(change):
    assert identity(TAUGHT, sets=[change]) == identity(TAUGHT)


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "seed=",
        "train.lr=2e-4",
        "train.batch=8",
        "train.steps=3",
        "train.eval_rows=3",
        "loss.kl.temperature=1",
        "loss.kl.use=skew-kl",
        "loss.ce.weight=0.25",
        "teacher.model=u",
        "data.path=q",
        "student.dtype=fp32",
        "selection={use='random', keep=0.5}",
    ],
)
def test_what_changes_the_result_counts(change):
    assert identity(TAUGHT, sets=[change]) != identity(TAUGHT)


def test_the_name_of_the_file_and_requirements_do_not_count():
    assert identity(TAUGHT, name="other") == identity(TAUGHT)
    assert identity('requires = ["kdcore"]\n' + TAUGHT) == identity(TAUGHT)
    assert identity(TAUGHT, logs=["tracker"]) == identity(TAUGHT)


def test_seed_0_is_the_same_typed_or_not():
    assert identity("seed = 0\n" + SIMPLE) == identity(SIMPLE)


def test_the_micro_batch_counts_where_a_selection_ranks_within_it():
    selected = SIMPLE + '[selection]\nuse = "random"\nkeep = 0.5\nscope = "micro_batch"\n'
    assert identity(selected, sets=["train.micro_batch=2"]) != identity(selected)
    whole = selected.replace("micro_batch", "step")
    assert identity(whole, sets=["train.micro_batch=2"]) == identity(whole)


def test_extending_and_setting_give_the_identity_of_the_merged_recipe():
    assert identity(TAUGHT, sets=["train.lr=1"]) == identity(TAUGHT.replace("1e-4", "1"))
    Path("base.toml").write_text(TAUGHT)
    assert identity('extends = "base.toml"\n') == identity(TAUGHT)


def test_stages_count_through_their_references():
    with_other_teacher = STAGED.replace("lr = 1e-4", "lr = 5e-4")
    for stage in ("one", "two", "student"):
        assert identity(STAGED, stage) != identity(with_other_teacher, stage)
    with_other_student = STAGED.replace("lr = 1e-3", "lr = 5e-3")
    assert identity(STAGED, "one") == identity(with_other_student, "one")
    assert identity(STAGED, "student") != identity(with_other_student, "student")


def test_the_names_of_stages_do_not_count():
    renamed = STAGED.replace("@one", "@first").replace("stage.one.", "stage.first.")
    assert identity(renamed, "first") == identity(STAGED, "one")
    assert identity(renamed, "student") == identity(STAGED, "student")
    swapped = STAGED.replace("@two", "@x").replace('"@one"},', '"@two"},').replace("@x", "@one")
    assert identity(swapped, "student") != identity(STAGED, "student")


def test_a_stage_is_the_same_run_as_a_recipe_of_its_own():
    text = '[tokenizer]\nuse = "bpe"\n[data]\nuse = "text"\npath = "p"\n[train]\nepochs = 4\n'
    text += 'batch = 16\nlr = 1e-4\n[student.config]\nmodel_type = "gpt2"\n[[loss]]\nuse = "ce"\n'
    assert identity(text) == identity(STAGED, "one")


def test_the_data_of_the_tokenizer_counts_where_it_is_other_data():
    own = STAGED + '[stage.one.data]\npath = "q"\n'
    other = own.replace('path = "p"', 'path = "o"')
    assert identity(own, "one") != identity(other, "one")
    trained_on_its_own = '[stage.one.tokenizer]\nuse = "bpe"\n'
    assert identity(own + trained_on_its_own, "one") == identity(other + trained_on_its_own, "one")


def shuffled(value, order):
    if isinstance(value, dict):
        keys = list(value)
        order.shuffle(keys)
        return {key: shuffled(value[key], order) for key in keys}
    return [shuffled(each, order) for each in value] if isinstance(value, list) else value


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.integers(0, 2**32))
def test_the_order_of_keys_does_not_count(seed):
    table = shuffled(tomli.loads(STAGED), random.Random(seed))
    for stage in ("one", "student"):
        assert identity(tomli_w.dumps(table), stage) == identity(STAGED, stage)


REMOTE = '{use = "remote", address = "%s", model = "%s"}'


@pytest.mark.parametrize(
    "teacher",
    [
        REMOTE,
        '{use = "stored", kind = "topk", teacher = ' + REMOTE + "}",
        '{use = "ensemble", members = [{use = "hf", model = "t"}, ' + REMOTE + "]}",
        '{use = "ensemble", members = [{use = "hf", model = "t"}], by_name = {a = ' + REMOTE + "}}",
    ],
)
def test_where_something_is_does_not_count(teacher):
    text = TAUGHT.replace('[teacher]\nuse = "hf"\nmodel = "t"\n', "")
    found = {
        variant: identity(f"teacher = {teacher % variant}\n{text}")
        for variant in [("here", "m"), ("there", "m"), ("here", "n")]
    }
    assert found["here", "m"] == found["there", "m"] != found["here", "n"]


def test_where_something_is_has_no_part_in_a_fingerprint():
    one, other = (Remote(address=at, model="m") for at in ("here", "there"))
    assert one.fingerprint() == other.fingerprint() == "remote(model='m')"
    assert Ensemble(members=[one]).fingerprint() == Ensemble(members=[other]).fingerprint()
