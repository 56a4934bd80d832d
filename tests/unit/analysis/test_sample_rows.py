"""Rows drawn from a recipe's data, as its students will see them."""

import numpy as np
import pytest

from kdcore.analysis.rows import sample_rows
from kdcore.cli.main import plugin_manager
from kdcore.errors import RunError, UsageError
from kdcore.models.loading import load_tokenizer
from kdcore.models.locations import is_trusted, set_trusted
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe

pytestmark = pytest.mark.slow

RECIPE = """
seed = 3
[tokenizer]
use = "bpe"
vocab_size = 300
[data]
use = "stories"
stories = 30
validation = 5
block = 64
[student.config]
model_type = "llama"
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 1
num_attention_heads = 2
[[loss]]
use = "ce"
[train]
steps = 2
batch = 4
lr = 1e-3
"""
STAGES = (
    RECIPE
    + """
[stage.teacher]
[stage.longer.data]
block = 96
[stage.longer.student]
model = "@teacher"
[stage.longer.tokenizer]
use = "hf"
model = "@teacher"
[stage.same.train]
steps = 9
"""
)
ASKED = '''
from kdcore import Data, component, hookimpl, lay_documents

@component
class Asked(Data):
    """Ids of which the first three of each document are not trained."""

    name = "asked"

    def texts(self, split):
        return ["abc", "def"]

    def make_rows(self, split, tokenizer, *, seed, epoch):
        ids = [list(range(5, 5 + n)) for n in (6, 8, 5)]
        documents = [{"input_ids": each, "labels": [-100] * 3 + each[3:]} for each in ids]
        return lay_documents(self, split, lambda: documents, key="asked")

@hookimpl
def kdcore_data():
    return [Asked]
'''


@pytest.fixture(scope="module")
def host():
    return PluginManager()


def recipe_of(tmp_path, text, *sets, host):
    (tmp_path / "mine.toml").write_text(text)
    return read_recipe(str(tmp_path / "mine.toml"), host, sets=sets)


def test_rows_of_a_recipe_without_stages(tmp_path, host):
    (sample,) = sample_rows(recipe_of(tmp_path, RECIPE, host=host), count=4)
    assert sample.stages == ["mine"] and sample.split == "train"
    assert sample.data == "stories(block=64, stories=30, validation=5)"
    assert (sample.block, sample.documents, len(sample.rows)) == (64, 30, 4)
    assert sample.cut > 0 and sample.dropped == 0
    for row in sample.rows:
        assert 1 < len(row.input_ids) <= 64
        begins = np.flatnonzero(np.append(True, np.diff(row.document) != 0))
        assert not row.valid[begins].any()
        assert row.valid.sum() == len(row.valid) - len(begins)


def test_a_tokenizer_with_code_of_its_own_is_loaded_where_the_recipe_trusts_it(
    tmp_path, host, monkeypatch
):
    def load(name, **options):
        asked.append(is_trusted("own/code"))
        return load_tokenizer(name, **options)

    asked = []
    monkeypatch.setattr("kdcore.runs.artifacts.load_tokenizer", load)
    set_trusted(())
    text = 'trust_remote_code = ["own/code"]\n' + RECIPE
    list(sample_rows(recipe_of(tmp_path, text, host=host), count=1))
    set_trusted(())
    assert asked == [True]


def test_they_are_drawn_by_the_seed_and_not_the_first(tmp_path, host):
    def drawn(*sets, count=4):
        recipe = recipe_of(tmp_path, RECIPE, *sets, host=host)
        (sample,) = sample_rows(recipe, count=count)
        return [row.index for row in sample.rows], sample

    first, sample = drawn()
    assert first == sorted(set(first)) != [0, 1, 2, 3]
    assert drawn()[0] == first
    assert drawn("seed=4")[0] != first
    everything, _ = drawn(count=10_000)
    assert everything == list(range(sample.rows_in_all))


def test_stages_that_see_the_same_rows_are_reported_once(tmp_path, host):
    recipe = recipe_of(tmp_path, STAGES, host=host)
    samples = list(sample_rows(recipe, count=1))
    assert [sample.stages for sample in samples] == [
        ["mine.teacher", "mine.same"],
        ["mine.longer"],
    ]
    assert [sample.block for sample in samples] == [64, 96]


def test_one_stage_with_another_ones_tokenizer(tmp_path, host):
    recipe = recipe_of(tmp_path, STAGES, host=host)
    (sample,) = sample_rows(recipe, stage="longer", count=1)
    assert sample.stages == ["mine.longer"] and len(sample.tokenizer) == 300
    with pytest.raises(UsageError, match="no stage 'longest': teacher, longer, same"):
        list(sample_rows(recipe, stage="longest"))


def test_validation_rows(tmp_path, host):
    (sample,) = sample_rows(recipe_of(tmp_path, RECIPE, host=host), split="validation", count=99)
    assert sample.split == "validation" and sample.documents == 5
    assert len(sample.rows) == sample.rows_in_all


def test_prompts_are_not_valid(tmp_path):
    (tmp_path / "asked.py").write_text(ASKED)
    host = plugin_manager([str(tmp_path / "asked.py")])
    text = RECIPE.replace('use = "stories"\nstories = 30\nvalidation = 5\n', 'use = "asked"\n')
    (sample,) = sample_rows(recipe_of(tmp_path, text, "data.block=14", host=host), count=9)
    valid = ["".join("x" if each else "-" for each in row.valid) for row in sample.rows]
    assert valid == ["---xxx---xxxxx", "---xx"]


def test_what_cannot_be_read_is_said(tmp_path, host):
    text = RECIPE.replace('use = "bpe"\nvocab_size = 300', 'use = "hf"\nmodel = "./gone"')
    with pytest.raises(RunError, match="gone"):
        list(sample_rows(recipe_of(tmp_path, text, host=host)))
