"""What a stage takes, on processors and GPUs; at the end against a process that really runs."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tiny
import torch

from kdcore.analysis.memory import estimate
from kdcore.analysis.plan import plans_of
from kdcore.cli.main import plugin_manager
from kdcore.recipe.recipe import read_recipe

pytestmark = pytest.mark.slow

RECIPE = """
[tokenizer]
use = "bpe"
vocab_size = 300
[data]
use = "stories"
stories = {stories}
block = {block}
[student.config]
model_type = "llama"
hidden_size = {hidden}
intermediate_size = {hidden}
num_hidden_layers = 4
num_attention_heads = 4
tie_word_embeddings = false
[[loss]]
use = "ce"
[train]
steps = 4
batch = 8
lr = 1e-3
eval_rows = 8
"""


def stage_of(tmp_path, *sets, hidden=32, block=64):
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE.format(stories=8, hidden=hidden, block=block))
    return read_recipe(str(path), plugin_manager([]), sets=sets).build()


def config(vocabulary=300):
    return tiny.model("llama", vocabulary, tie_word_embeddings=False).config


def estimated(tmp_path, *sets, ids=300, longest=64, vocabulary=300, **options):
    stage = stage_of(tmp_path, *sets, **options)
    return estimate(stage, config(vocabulary), ids=ids, longest=longest)


def size(taken):
    return sum(part.total for part in taken.parts)


def test_weights_gradients_and_moments_are_float32(tmp_path):
    taken = estimated(tmp_path)
    memory = dict(taken.memory)
    assert memory["student: weights"] == memory["student: gradients"] == 4 * size(taken)
    assert memory["student: optimizer"] == pytest.approx(8 * size(taken), rel=1e-3)
    assert taken.final == 4 * size(taken)
    assert taken.checkpoint == pytest.approx(12 * size(taken), rel=1e-3)
    assert taken.unknown == []


@pytest.mark.parametrize(
    "optimizer, numbers", [("sgd", 0), ("adagrad", 1), ("adam", 2), ("adafactor", 0.01)]
)
def test_the_optimizers_own_state_is_counted(tmp_path, optimizer, numbers):
    taken = estimated(tmp_path, f"train.optimizer={optimizer}")
    state = dict(taken.memory)["student: optimizer"]
    assert state == pytest.approx(4 * numbers * size(taken), rel=0.3, abs=100)


def test_the_peak_is_more_than_what_is_held_and_about_all_of_it(tmp_path):
    taken = estimated(tmp_path)
    amounts = [amount for _, amount in taken.memory]
    assert sum(amounts[:4]) < taken.peak < 1.1 * sum(amounts)


def test_bf16_weights_are_counted_with_their_masters(tmp_path):
    sets = ("train.precision=bf16", "train.micro_batch=4")
    without = estimated(tmp_path, *sets)
    with_them = estimated(tmp_path, *sets, "train.bf16_weights=true")
    before, memory = dict(without.memory), dict(with_them.memory)
    assert memory["student: bf16 weights"] == 2 * size(with_them)
    assert memory["student: weights"] == before["student: weights"] == 4 * size(with_them)
    kept = "activations of 4 x 64 tokens"
    assert memory[kept] < before[kept]
    assert with_them.unknown == [] and with_them.checkpoint == without.checkpoint


def test_a_micro_batch_is_as_long_as_the_longest_row(tmp_path):
    short, whole = estimated(tmp_path, longest=16), estimated(tmp_path, longest=None)
    assert "activations of 8 x 16 tokens" in dict(short.memory)
    assert "activations of 8 x 64 tokens" in dict(whole.memory)
    assert short.peak < whole.peak


def test_micro_batches_are_those_of_a_run(tmp_path):
    assert estimated(tmp_path, "train.micro_batch=3").micro_batch == 3
    assert estimated(tmp_path, "train.micro_batch=99").micro_batch == 8
    assert estimated(tmp_path, block=2048).micro_batch == 2


def test_checkpointing_is_reported_either_way(tmp_path):
    without = estimated(tmp_path)
    with_it = estimated(tmp_path, "train.checkpointing=true")
    kept = dict(with_it.memory)["activations of 8 x 64 tokens"]
    assert without.checkpointed == kept < dict(without.memory)["activations of 8 x 64 tokens"] / 3
    assert with_it.checkpointed is None


def test_logits_are_cut_to_the_ids_that_there_are(tmp_path):
    wide = estimated(tmp_path, vocabulary=20_000, ids=None)
    cut = estimated(tmp_path, vocabulary=20_000, ids=300)
    logits = "scores, logits and losses"
    assert dict(cut.memory)[logits] < dict(wide.memory)[logits] / 2


def test_every_teacher_is_counted(tmp_path):
    tiny.save(tmp_path / "one")
    tiny.save(tmp_path / "two", hidden_size=64)
    members = ", ".join(f"{{use = 'hf', model = '{tmp_path}/{n}'}}" for n in ("one", "two"))
    taken = estimated(
        tmp_path,
        f"teacher={{use = 'ensemble', members = [{members}]}}",
        "loss=[{use = 'kl'}]",
        f"selection={{use = 'rho', keep = 0.5, reference = {{use = 'hf', model = '{tmp_path}/one', "
        "dtype = 'bf16'}}",
    )
    found = [(name, amount) for name, amount in taken.memory if name.startswith("teacher: hf")]
    numbers = [int(re.sub(r"\D", "", name)) for name, _ in found]
    assert numbers[0] == numbers[2] < numbers[1]
    assert [amount for _, amount in found] == [4 * numbers[0], 4 * numbers[1], 2 * numbers[2]]


@pytest.mark.parametrize("how, bits", [("8bit", 8), ("4bit", 4)])
def test_quantised_weights_take_less(tmp_path, how, bits):
    tiny.save(tmp_path / "one")
    teacher = f"teacher={{use = 'hf', model = '{tmp_path}/one', quantise = '{how}'}}"
    taken = estimated(tmp_path, teacher, "loss=[{use = 'kl'}]")
    [(name, amount)] = [pair for pair in taken.memory if pair[0].startswith("teacher: hf")]
    assert amount == int(re.sub(r"\D", "", name)) * bits // 8


def test_a_loss_that_looks_at_values_is_named(tmp_path):
    stage = stage_of(tmp_path)

    def curious(student, teacher, labels):
        return student.mean(-1) * (student.sum().item() > 0)

    stage.terms[0].loss.per_token = curious
    taken = estimate(stage, config(), ids=300, longest=64)
    [why] = taken.unknown
    assert why.startswith("activations and logits: ")
    assert size(taken) and taken.peak


@pytest.fixture
def a_gpu(monkeypatch):
    def of(memory):
        properties = SimpleNamespace(total_memory=memory)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    return of


def test_a_gpu_takes_what_fits_in_half_precision(tmp_path, a_gpu):
    on_cpu = estimated(tmp_path, longest=None, block=512)
    a_gpu(80 * 2**30)
    plenty = estimated(tmp_path, longest=None, block=512)
    assert (plenty.device, plenty.micro_batch) == ("cuda", 8)
    kept = "activations of 8 x 512 tokens"
    assert dict(plenty.memory)[kept] < dict(on_cpu.memory)[kept]
    a_gpu(plenty.peak - 1_000_000)
    assert estimated(tmp_path, longest=None, block=512).micro_batch < 8
    a_gpu(1)
    assert estimated(tmp_path, longest=None, block=512).micro_batch == 1


MEASURE = """
import sys
from kdcore.cli.main import app
app(["run", *sys.argv[1:]], standalone_mode=False)
for line in open("/proc/self/status"):
    if line.startswith("VmHWM:"):
        print("peak", int(line.split()[1]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.skipif(torch.cuda.is_available(), reason="estimates are of the GPU's memory there")
@pytest.mark.parametrize("hidden, block", [(32, 128), (192, 512)])
def test_the_estimate_is_within_a_fifth_of_what_a_run_takes(tmp_path, hidden, block):
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE.format(stories=200, hidden=hidden, block=block))
    [plan] = plans_of(read_recipe(str(path), plugin_manager([])))
    words = [sys.executable, "-c", MEASURE, str(path), "-p", "no:evals", "--out", str(tmp_path)]
    output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    measured = int(re.search(r"peak (\d+)", output)[1])
    assert plan.estimate.peak == pytest.approx(measured, rel=0.2)
