"""The memory of several GPUs: what sharding divides, gathers, and leaves as it is."""

from dataclasses import replace

import pytest
import tiny
import torch

from kdcore.analysis.memory import estimate_processes
from kdcore.analysis.parameters import largest_layer, layers_of
from kdcore.analysis.processes import ModelSize, StepSize, StudentSize, card_for, memory_of
from kdcore.cli.main import plugin_manager
from kdcore.recipe.recipe import read_recipe

GB = 10**9
STUDENT = StudentSize(
    weights=32 * GB,
    gradients=32 * GB,
    optimizer=64 * GB,
    head=2 * GB,
    head_gradient=2 * GB,
    layer=1 * GB,
    layer_numbers=GB // 2,
)
TEACHER = ModelSize(weights=64 * GB, head=1 * GB, layer=2 * GB)
STEP = StepSize(peak=37 * GB, passing=10 * GB, casts=4 * GB)


def found(processes, teachers=(TEACHER,), step=STEP):
    return memory_of(processes, 1, GB, STUDENT, teachers, step)


def rounded(size):
    return round(size / GB, 1)


def test_one_process_shards_nothing():
    one = found(1)
    assert rounded(one.whole) == rounded(1e9 * (1 + 32 + 64 + 64 + 1.1 * 37))
    assert one.student is one.teachers is None


def test_ddp_has_buckets_as_large_as_the_gradients():
    assert found(2).whole - found(1).whole == round(1.1 * 32 * GB)
    assert found(16).whole == found(2).whole


def test_a_sharded_student_is_divided_but_for_what_is_gathered():
    # A step: activations without casts, a part of the gradients, the head's, a layer and its sums.
    passing = {n: 10 - 4 + 32 / n + 2 + 1 + 4 / 2 for n in (4, 8)}
    for n, step in passing.items():
        gathered = 2 + 2 * 1
        assert rounded(found(n).student) == rounded(
            1e9 * (1 + (32 + 64) / n + 64 + 1.1 * (step + gathered))
        )


def test_the_peak_may_be_behind_the_activations():
    late = found(8, step=replace(STEP, peak=60 * GB)).student - found(8).student
    assert rounded(late) == rounded(1.1e9 * ((60 - 4 - 32 + 4 + 2) - (10 - 4 + 4 + 2 + 1 + 2)))
    writing = found(8, step=replace(STEP, writing=50 * GB)).student - found(8).student
    assert rounded(writing) == rounded(1.1e9 * (50 - (10 - 4 + 4 + 2 + 1 + 2)))


def test_sharded_teachers_keep_their_head_and_two_layers():
    saved = found(8).student - found(8).teachers
    assert rounded(saved) == rounded(1e9 * (64 - 64 / 8 - 1.1 * (1 + 2 * 2 - 2 * 1)))


def test_what_cannot_be_divided_stays_whole():
    fixed = replace(TEACHER, divides=False)
    assert found(8, (fixed,)).teachers is None
    assert found(8, ()).teachers is None
    both = found(8, (TEACHER, fixed))
    assert both.teachers - found(8).teachers == 64 * GB


def test_the_smallest_card_has_a_margin():
    assert card_for(int(21.6e9), 0.1) == 24
    assert card_for(int(21.7e9), 0.1) == 40
    assert card_for(int(72e9), 0.1) == 80
    assert card_for(int(73e9), 0.1) is None


def test_layers_are_those_of_the_trunk():
    model = tiny.model("llama", 270)
    assert layers_of(model) == list(model.model.layers)
    assert largest_layer(model) in layers_of(model)
    alone = torch.nn.Linear(2, 2)
    assert largest_layer(alone) is alone


RECIPE = """
[student.config]
model_type = "llama"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 4
num_attention_heads = 4
[tokenizer]
use = "bpe"
vocab_size = 300
[teacher]
use = "hf"
model = "teacher"
[data]
use = "stories"
stories = 8
block = 64
[[loss]]
use = "kl"
[train]
steps = 4
batch = 8
lr = 1e-3
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.model("llama", 300).config.save_pretrained("teacher")
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    return str(path)


def estimated(recipe, *sets, counts=(1, 4, 8)):
    stage = read_recipe(recipe, plugin_manager([]), sets=sets).build()
    config = tiny.model("llama", 300).config
    return estimate_processes(stage, config, counts, ids=300, longest=64, rows=8)


@pytest.mark.slow
def test_a_recipe_is_estimated_without_a_gpu(recipe):
    one, four, eight = estimated(recipe)
    assert [each.rows for each in (one, four, eight)] == [1, 1, 1]
    assert one.whole < four.whole  # the buckets of DDP
    assert four.whole > four.student > four.teachers
    assert four.student > eight.student


@pytest.mark.slow
def test_rows_at_once_are_at_most_those_of_a_process(recipe):
    found = estimated(recipe, "train.micro_batch=4", counts=(1, 2, 8))
    assert [each.rows for each in found] == [4, 4, 1]


@pytest.mark.slow
@pytest.mark.parametrize("option", ["teacher.quantise=8bit", "teacher.offload=true"])
def test_quantised_and_offloaded_teachers_are_not_sharded(recipe, option):
    (four,) = estimated(recipe, option, counts=(4,))
    assert four.teachers is None
