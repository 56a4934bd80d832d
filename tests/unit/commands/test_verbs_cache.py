"""`kdcore cache`: building, verifying, listing and removing stores."""

import json
import shutil

import numpy as np
import pytest
import tiny
from kdcore_cached.buckets import TopK
from kdcore_cached.catalogue import Kept, find_store, stores_in
from kdcore_cached.checks import CHECK
from kdcore_hf import HfTeacher
from typer.testing import CliRunner

from kdcore import RunError, UsageError, iter_batches
from kdcore.commands import cache as verb
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe
from kdcore.runs.open import not_begun, open_stage

pytestmark = pytest.mark.slow

RECIPE = """\
[tokenizer]
use = "hf"
model = "MODEL"
[data]
use = "stories"
stories = 8
block = 64
[student.config]
model_type = "llama"
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 1
num_attention_heads = 2
[teacher]
use = "cached"
kind = "topk"
k = 4
teacher = {use = "hf", model = "MODEL"}
[[loss]]
use = "kl"
[train]
lr = 1e-3
steps = 1
batch = 4
"""


@pytest.fixture(scope="module")
def host():
    return PluginManager()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    tiny.save(folder / "model", "llama")
    path = folder / "r.toml"
    path.write_text(RECIPE.replace("MODEL", str(folder / "model")))
    return str(path)


@pytest.fixture
def loads(monkeypatch):
    """How often the wrapped teacher is loaded."""
    seen, inner = [], HfTeacher.load

    def load(teacher, run):
        seen.append(teacher)
        inner(teacher, run)

    monkeypatch.setattr(HfTeacher, "load", load)
    return seen


@pytest.fixture
def call(monkeypatch, host, tmp_path):
    monkeypatch.setattr(verb, "plugin_manager", lambda plugins: host)
    monkeypatch.setenv("COLUMNS", "200")

    def called(*words, **options):
        done = CliRunner().invoke(verb.cache, [*words, "--out", str(tmp_path)], **options)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return called


@pytest.fixture(scope="module")
def made(recipe, host, tmp_path_factory):
    """A store that is complete."""
    out = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "plugin_manager", lambda plugins: host)
        assert CliRunner().invoke(verb.cache, ["build", recipe, "--out", str(out)]).exit_code == 0
    return out / "caches"


@pytest.fixture
def store(made, tmp_path):
    """A copy of it, to be spoilt."""
    shutil.copytree(made, tmp_path / "caches")
    (one,) = stores_in(tmp_path / "caches")
    return one


def array(store, file):
    (found,) = (each for each in store.kind.arrays if each.file == file)
    return np.memmap(store.folder / file, found.dtype, "r+", shape=(store.tokens, found.width or 1))


def test_what_will_be_stored_is_reported_first(call, recipe, loads):
    done = call("build", recipe)
    first, second, last = done.stdout.splitlines()
    assert first.split()[-5:] == ["bytes/token", "tokens", "stored", "in", "all"]
    tokens, stored = (int(n.replace(",", "")) for n in second.split()[-4:-2])
    assert stored == 0
    assert second.split()[-6:-4] == ["topk", str(TopK(4, 1000).bytes_per_token)]
    assert second.endswith(f"{tokens * 29 / 1024:.1f} KiB")
    assert last.endswith("it holds 100 % of what the rows predict")
    assert "100 % of " in done.stderr and len(loads) == 1


def test_building_again_loads_nothing(call, recipe, store, loads):
    done = call("build", recipe)
    assert "nothing was missing; it holds 100 %" in done.stdout and not loads
    assert done.stdout.splitlines()[1].split()[-3] == f"{store.filled():,}"


def test_it_resumes_where_it_was_interrupted(call, recipe, monkeypatch, tmp_path):
    inner, seen = TopK.scored, []

    def scored(kind, teacher, batch):
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(len(batch.valid))
        return inner(kind, teacher, batch)

    monkeypatch.setattr("kdcore.runs.open.cpu_default", lambda batch, block: 2)
    monkeypatch.setattr(TopK, "scored", scored)
    assert call("build", recipe).exit_code == 130
    monkeypatch.setattr(TopK, "scored", inner)
    (one,) = stores_in(tmp_path / "caches")
    assert one.filled() == seen[0]
    done = call("build", recipe)
    asked = one.about["asked"]
    assert f"{asked - seen[0]:,} tokens stored; it holds 100 %" in done.stdout


def test_a_run_finds_what_was_built(recipe, host, store, tmp_path, loads):
    with not_begun(read_recipe(recipe, host), "", tmp_path) as request:
        run = open_stage(request, upto="ids")
        run.teacher.load(run)
        for batch in iter_batches(run, run.rows("train")):
            run.teacher.stored(batch)
    assert not loads and not [path for path in tmp_path.iterdir() if path.name != "caches"]


def test_a_whole_store_is_verified(call, recipe, store):
    said = call("verify", recipe).stdout
    assert "whole; it holds 100 % of what the rows predict" in said
    assert "against the live teacher: off by 0 on average" in said
    assert call("verify").stdout == call("verify", store.folder.name).stdout
    assert "whole; it holds" in call("verify").stdout


def test_what_the_teacher_does_not_say_is_found(call, recipe, store):
    ids = array(store, "ids.i32")
    ids[:] = (ids + 1) % 200
    (store.folder / CHECK.file).unlink()  # so that the store looks whole
    with pytest.raises(RunError, match=r"off by .* at most; .*; rounding stays below 0\.1"):
        call("verify", recipe)


def test_torn_slots_are_stored_again(call, recipe, store):
    ids, known = array(store, "ids.i32"), array(store, "known.u1")
    there = np.flatnonzero(known)[3:6]
    ids[there] = 0
    with pytest.raises(RunError, match="3 torn slots are now marked as missing"):
        call("verify", store.folder.name)
    assert not known[there].any()
    assert "3 tokens stored; it holds 100 %" in call("build", recipe).stdout
    assert "whole" in call("verify", recipe).stdout


def without_file(store):
    (store.folder / "ids.i32").unlink()


def shortened(store):
    path = store.folder / "ids.i32"
    path.write_bytes(path.read_bytes()[:-16])


def torn(store):
    path = store.folder / "ids.i32"
    path.write_bytes(path.read_bytes()[:-1])


def changed_meta(store):
    path = store.folder / "meta.json"
    path.write_text(path.read_text().replace('"k": 4', '"k": 3'))


def torn_meta(store):
    path = store.folder / "meta.json"
    path.write_text(path.read_text()[:20])


def without_meta(store):
    (store.folder / "meta.json").unlink()


@pytest.mark.parametrize(
    "spoil, said",
    [
        (without_file, "ids.i32 is missing"),
        (shortened, "its files have different lengths: one is truncated"),
        (torn, "its files have different lengths: one is truncated"),
        (changed_meta, "meta.json was changed"),
        (torn_meta, "meta.json cannot be read"),
        (without_meta, "meta.json is missing"),
    ],
)
def test_damage_is_reported(call, store, spoil, said):
    spoil(store)
    with pytest.raises(RunError, match=f"{said}.*kdcore cache rm {store.folder.name} removes it"):
        call("verify")
    assert said.split(" is ")[0].split(" was ")[0] in call("ls").stdout


def test_a_recipe_of_which_nothing_is_stored(call, recipe, tmp_path, loads):
    with pytest.raises(RunError, match="train: nothing is stored; kdcore cache build stores it"):
        call("verify", recipe)
    assert not stores_in(tmp_path / "caches") and not loads


def test_a_list_of_stores(call, store):
    table = call("ls").stdout.splitlines()
    assert len(table) == 2 and "100 % of what the rows predict" in table[1]
    assert "stories(block=64, stories=8)" in table[1] and " topk " in table[1]
    (one,) = json.loads(call("ls", "--json").stdout)
    assert one["store"] == store.folder.name and one["split"] == "train" and one["there"] == 1
    assert one["bytes"] == sum(path.stat().st_size for path in store.folder.iterdir())


def test_a_list_of_none(call):
    assert "no stores in" in call("ls").stdout and json.loads(call("ls", "--json").stdout) == []


def test_a_store_of_an_earlier_version(call, store):
    """It says less of itself, and is as good."""
    (store.folder / "about.json").unlink()
    line = call("ls").stdout.splitlines()[1]
    assert " of all tokens" in line and " hf " in line


def test_removing(call, store, monkeypatch):
    with pytest.raises(UsageError, match=r"nothing was removed: .* --yes"):
        call("rm", store.folder.name)
    assert store.folder.exists()
    key = store.folder.name.rsplit("-", 1)[1]
    assert call("rm", key, store.folder.name, "--yes").stdout.count("\n") == 1
    assert not store.folder.exists() and not stores_in(store.folder.parent)


def test_what_a_name_may_mean(store):
    caches = store.folder.parent
    assert find_store(str(store.folder), caches) == find_store("hf-t", caches) == store
    shutil.copytree(store.folder, caches / "hf-train-0123")
    with pytest.raises(UsageError, match="'hf' matches several stores: hf-train-0123, hf-train-"):
        find_store("hf", caches)
    with pytest.raises(
        UsageError, match=r"no store in .* is named 'zzz'; there are: hf-train-0123"
    ):
        find_store("zzz", caches)
    assert Kept(caches / "hf-train-0123").error().startswith("meta.json was changed")


def test_recipes_without_a_cached_teacher(call, recipe):
    with pytest.raises(UsageError, match=r"recipe 'r' has no cached teacher; wrap one: \{use = "):
        call("build", recipe, "--set", "teacher.use=hf", "--set", 'teacher.model="m"')
    with pytest.raises(UsageError, match="recipe 'r' has no stage 'zzz'"):
        call("build", recipe, "--stage", "zzz")


def test_stages_that_it_hangs_on_are_finished_first(call, tmp_path):
    text = RECIPE.split("[teacher]")[0].replace('"MODEL"', '"m"')
    text += '[[loss]]\nuse = "ce"\n[train]\nlr = 1e-3\nsteps = 1\n[stage.big.train]\nbatch = 4\n'
    text += '[stage.small.teacher]\nuse = "cached"\nkind = "topk"\n'
    text += 'teacher = {use = "hf", model = "@big"}\n[[stage.small.loss]]\nuse = "kl"\n'
    (tmp_path / "two.toml").write_text(text)
    with pytest.raises(
        UsageError, match=r"'big' is not finished in .*: kdcore run two --stage big"
    ):
        call("build", str(tmp_path / "two.toml"))
