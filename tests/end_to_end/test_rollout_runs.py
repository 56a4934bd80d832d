"""Whole runs whose rows are written: killed, resumed by more processes, chats, adapters."""

import json
import shutil
import signal
from pathlib import Path

import forks
import pytest
import torch
from safetensors.torch import load_file
from test_stages import KILLER, assert_same_weights, metrics, run, weights

from kdcore import KdcoreError
from kdcore.plugin.manager import PluginManager
from kdcore.training.checkpoints.folders import newest

pytestmark = pytest.mark.slow

RECIPE = """
[tokenizer]
use = "bpe"
vocab_size = 300

[data]
use = "stories"
stories = 30
validation = 5
block = 32

[student.config]
model_type = "llama"
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
attention_dropout = 0.1

[teacher]
use = "ema"
decay = 0.7

[[loss]]
use = "jsd"

[[loss]]
use = "ce"
where = {source = "data"}

[rollout]
use = "replay"
of = {use = "student", max_new_tokens = 8, top_p = 0.9}
max_new_tokens = 8
prompt_tokens = 6
share = 0.7
every = 4
write_batch = 4

[train]
steps = 6
batch = 4
micro_batch = 2
lr = 1e-2
log_every = 2
eval_every = 3
save_every = 2
eval_rows = 8
"""
CHAT = {
    "data": "{use='story-tasks', tasks=30, validation=8, block=160}",
    "rollout": "{use='student', max_new_tokens=24, share=1.0}",
    "student.patch": "[{use='lora', rank=2}]",
    "train.eval_rows": "4",
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("one.toml").write_text(RECIPE)


@pytest.fixture(scope="module")
def host():
    return PluginManager(off=["panel"])


def timeless(folder):
    return [
        {key: value for key, value in line.items() if key != "rollout/time_share"}
        for line in metrics(folder)
    ]


def written(folder):
    return (folder / "rollouts.jsonl").read_text()


@pytest.mark.parametrize("step", [2, 4, 5])
def test_a_killed_run_writes_and_learns_the_same(host, step):
    (whole,) = run(host, out=Path("whole"))
    assert any("rollout/length" in line for line in timeless(whole))
    kill = "__import__('os').kill(__import__('os').getpid(), 9)"
    text = KILLER.format(step=step, name="one").replace("raise KeyboardInterrupt", kill)
    Path("killer.py").write_text(text)
    killed = forks.run("kdcore", "run", "one.toml", "-p", "./killer.py")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (ended,) = run(host)
    assert timeless(ended) == timeless(whole)
    assert written(ended) == written(whole)
    assert_same_weights(ended, whole)


def test_two_processes_generate_what_one_does_and_resume_from_its_checkpoint(host):
    sets = ("student.config.attention_dropout=0.0", "train.steps=4", "train.log_every=1")
    (one,) = run(host, out=Path("whole"), sets=sets)
    words = [word for each in sets for word in ("--set", each)]
    both = ["kdcore", "run", "one.toml", "--processes", "2", *words]
    done = forks.run(*both, "--out", "both", ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    (two,) = Path("both").iterdir()
    first = [line for line in written(one).splitlines() if json.loads(line)["step"] <= 4]
    assert written(two).splitlines() == first, "step 1 to 4 are written with the first weights"
    Path("killer.py").write_text(KILLER.format(step=3, name="one"))
    with pytest.raises(KeyboardInterrupt):
        run(PluginManager(off=["panel"], files=["killer.py"]), sets=sets)
    (begun,) = Path("runs").iterdir()
    kept = load_file(newest(begun / "checkpoints") / "components.safetensors")
    assert [key for key in kept if key.startswith("written/3/ids")], "what is not trained yet"
    done = forks.run(*both, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert written(begun) == written(one)
    for alone, together in zip(timeless(one), timeless(begun), strict=True):
        assert together.pop("stage") == alone.pop("stage")
        assert together == pytest.approx(alone, rel=1e-4, abs=1e-6)


def test_chats_and_adapters(host):
    sets = tuple(f"{key}={value}" for key, value in CHAT.items())
    (folder,) = run(host, sets=(*sets, "teacher={use='self'}", "loss=[{use='jsd'}]"))
    lines = [json.loads(line) for line in written(folder).splitlines()]
    assert lines
    for line in lines:
        assert line["prompt"].rstrip().endswith("Assistant:"), "the template's generation prompt"
        assert line["source"] == "student"
    assert metrics(folder)[-1]["step"] == 6


def test_the_student_that_writes_has_its_adapters(host, monkeypatch):
    """LoRA is on while it writes: zeroed adapters write another text."""
    from kdcore.models.decoding import sample

    seen = []

    def watching(model, prompts, sampling, **options):
        found = sample(model, prompts, sampling, **options)
        kept = {n: p.detach().clone() for n, p in model.model.named_parameters() if "lora_" in n}
        with torch.no_grad():
            for name, parameter in model.model.named_parameters():
                if name in kept:
                    parameter.zero_()
            without = sample(model, prompts, sampling, **options)
            for name, parameter in model.model.named_parameters():
                if name in kept:
                    parameter.copy_(kept[name])
        seen.append([a.log_probs != b.log_probs for a, b in zip(found, without, strict=True)])
        return found

    monkeypatch.setattr("kdcore.rollout.local.sample", watching)
    sets = tuple(f"{key}={value}" for key, value in CHAT.items())
    run(host, sets=(*sets, "teacher={use='self'}", "loss=[{use='jsd'}]", "train.steps=3"))
    assert any(map(all, seen[1:]))


DOCUMENTS = "train={batch_documents=5, steps=6, lr=1e-2, save_every=2, save_keep=9, log_every=1}"


def test_steps_of_documents_have_their_answers_however_they_are_cut(host):
    """A step draws packed rows that hold so many documents, and each drawn row is written whole."""
    (whole,) = run(host, out=Path("whole"), sets=(DOCUMENTS, "train.micro_batch=8"))
    (cut,) = run(host, out=Path("cut"), sets=(DOCUMENTS, "train.micro_batch=1"))
    first = [line for line in written(whole).splitlines() if json.loads(line)["step"] <= 4]
    assert first and written(cut).splitlines()[: len(first)] == first
    before = weights(whole)
    shutil.rmtree(whole / "final")
    for gone in (4, 6):
        shutil.rmtree(whole / "checkpoints" / f"step-{gone}")
    (again,) = run(host, out=Path("whole"), sets=(DOCUMENTS, "train.micro_batch=8"))
    assert again == whole and timeless(again)[-1]["step"] == 6
    assert all(torch.equal(value, before[name]) for name, value in weights(again).items())


def test_answers_beyond_the_models_positions_end_the_run_before_it_begins(host):
    with pytest.raises(KdcoreError, match="longer than the student's 16 positions"):
        run(host, sets=("student.config.max_position_embeddings=16",))
