"""Whole runs with the patch `lora`: what they leave, and what later stages make of it."""

import json
from pathlib import Path

import forks
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from kdcore import KdcoreError, LanguageModel, load_model
from kdcore.analysis.plan import plans_of
from kdcore.cli.main import plugin_manager
from kdcore.errors import PluginError
from kdcore.models.causal_lm import random_ids
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe
from kdcore.runs.runner import RunRequest, run_all

pytest.importorskip("peft")
pytestmark = pytest.mark.slow

RECIPE = """
[data]
use = "stories"
stories = 30
validation = 5
block = 32
[[loss]]
use = "ce"
[[eval]]
use = "samples"
max_new_tokens = 8
[train]
steps = 4
batch = 4
lr = 1e-2
log_every = 2
eval_every = 2
save_every = 2
eval_rows = 8

[stage.big.student]
model = "base"
patch = [{use = "lora", rank = 4, merge = MERGE}]

[stage.small.student]
model = "other"
[stage.small.teacher]
use = "TEACHER"
model = "@big"
[[stage.small.loss]]
use = "kl"
[[stage.small.eval]]
use = "agreement"

[stage.more.student]
model = "@big"
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny.save("base", "qwen2", tie_word_embeddings=True)
    tiny.save("other", "llama", tokenizer=tokenizer, seed=1, vocabulary=len(tokenizer) + 8)


@pytest.fixture(scope="module")
def host():
    return PluginManager(off=["panel"])


def run(host, merge="true", teacher="hf", **asked):
    text = RECIPE.replace("MERGE", merge).replace("TEACHER", teacher)
    Path("mine.toml").write_text(text)
    return run_all(RunRequest("mine.toml", asked.pop("out", Path("runs")), **asked), host)


def metrics(folder, key):
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in read if key in line]


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=random_ids(model, tiny.CPU), use_cache=False).logits


@pytest.mark.parametrize("merge, teacher", [("true", "hf"), ("false", "hf"), ("false", "qwen")])
def test_later_stages_take_either(host, merge, teacher):
    big, small, more = run(host, merge, teacher)
    final = str(big / "final")
    there = {path.name for path in Path(final).iterdir()}
    assert ("adapter_model.safetensors" in there) == (merge == "false")
    assert ("model.safetensors" in there) == (merge == "true")

    taught = AutoModelForCausalLM.from_pretrained(final)
    assert (logits(taught) - logits(load_model("base", dtype=torch.float32))).abs().max() > 1e-3
    ours = logits(load_model(final, dtype=torch.float32))
    torch.testing.assert_close(logits(taught), ours, rtol=1e-4, atol=1e-5)
    vocabularies = [AutoTokenizer.from_pretrained(x).get_vocab() for x in ("base", final)]
    assert vocabularies[0] == vocabularies[1]
    if merge == "true":
        config = json.loads((big / "final" / "config.json").read_text())
        before = json.loads(Path("base/config.json").read_text())
        assert config == before

    # The one that is trained further begins where this one ended.
    assert metrics(more, "eval/nll")[0] == pytest.approx(metrics(big, "eval/nll")[-1], rel=1e-5)
    assert (more / "final" / "model.safetensors").is_file()
    assert metrics(small, "eval/agreement")


def test_the_adapter_learns_and_samples_are_written(host):
    (big,) = run(host, stage="big")
    first, *_, last = metrics(big, "eval/nll")
    assert last < first
    assert len(metrics(big, "eval/sample/1")) == 3
    checkpoint = load_file(big / "checkpoints" / "step-4" / "student.safetensors")
    assert checkpoint and all("lora_" in name for name in checkpoint)


ENDS = """
from kdcore import hookimpl

@hookimpl
def kdcore_run_end(run, error):
    if error is None:
        sums = run.evaluate(run.rows("validation"), [])
        ids = run.tokenizer("Once", return_tensors="pt")["input_ids"]
        run.student.generate(input_ids=ids, max_new_tokens=2, do_sample=False)
        (run.folder / "after.txt").write_text(f"{type(run.student).__name__} {sums['nll']}")
"""


@pytest.mark.parametrize("merge", ["true", "false"])
def test_the_run_can_be_asked_after_its_end(merge):
    Path("ends.py").write_text(ENDS)
    (big,) = run(PluginManager(off=["panel"], files=["ends.py"]), merge, stage="big")
    kind, nll = (big / "after.txt").read_text().split()
    assert kind == ("Qwen2ForCausalLM" if merge == "true" else "PeftModelForCausalLM")
    tokens = float(nll) / metrics(big, "eval/nll")[-1]
    assert tokens == pytest.approx(round(tokens), abs=1e-2)


FAILS = """
from pathlib import Path
from kdcore import Patch, component, hookimpl

@component
class Fails(Patch):
    name = "fails"

    def apply(self, model):
        return model

    def finish(self, model):
        if not Path("repaired").exists():
            raise RuntimeError("not yet")
        return model

@hookimpl
def kdcore_patches():
    return [Fails]
"""


@pytest.mark.parametrize("merge", ["true", "false"])
def test_a_run_whose_end_failed_resumes(host, merge):
    """The adapter was merged already, in memory; the checkpoint still has it by itself."""
    (whole,) = run(host, merge, stage="big", out=Path("whole"))
    Path("fails.py").write_text(FAILS)
    other = PluginManager(off=["panel"], files=["fails.py"])
    patches = f'[{{use = "lora", rank = 4, merge = {merge}}}, {{use = "fails"}}]'
    sets = (f"stage.big.student.patch={patches}",)
    with pytest.raises(PluginError, match="not yet"):
        run(other, merge, stage="big", sets=sets)
    Path("repaired").touch()
    (ended,) = run(other, merge, stage="big", sets=sets)
    name = "model.safetensors" if merge == "true" else "adapter_model.safetensors"
    one, two = (load_file(folder / "final" / name) for folder in (whole, ended))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


KILLER = """
from kdcore import hookimpl

@hookimpl
def kdcore_step_start(run, step):
    if step == 4:
        raise KeyboardInterrupt
"""


@pytest.mark.parametrize("sets", [(), ("train.checkpointing=true",)], ids=["", "checkpointing"])
def test_an_adapter_run_resumes_to_the_same_end(host, sets):
    patch = 'stage.big.student.patch=[{use = "lora", dropout = 0.2}]'
    (whole,) = run(host, stage="big", sets=(patch, *sets), out=Path("whole"))
    Path("killer.py").write_text(KILLER)
    with pytest.raises(KeyboardInterrupt):
        run(PluginManager(off=["panel"], files=["killer.py"]), stage="big", sets=(patch, *sets))
    (ended,) = run(host, stage="big", sets=(patch, *sets))
    one, two = (load_file(folder / "final" / "model.safetensors") for folder in (whole, ended))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert metrics(ended, "loss") == metrics(whole, "loss")


@pytest.mark.parametrize("merge", ["true", "false"])
def test_two_processes_leave_what_one_leaves(host, merge):
    (one,) = run(host, merge, stage="big", out=Path("whole"))
    words = ("kdcore", "run", "mine.toml", "--stage", "big", "--processes", "2")
    done = forks.run(*words, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    (two,) = Path("runs").iterdir()
    assert metrics(two, "eval/nll") == pytest.approx(metrics(one, "eval/nll"), rel=1e-5)
    name = "model.safetensors" if merge == "true" else "adapter_model.safetensors"
    together, alone = (load_file(folder / "final" / name) for folder in (two, one))
    for key, tensor in alone.items():
        torch.testing.assert_close(together[key], tensor, rtol=1e-3, atol=1e-3)


def test_an_adapter_of_an_adapter_is_refused_before_training(host):
    """Nobody could load it: its base would be one."""
    patch = 'stage.more.student.patch=[{use = "lora", merge = false}]'
    with pytest.raises(KdcoreError, match="set merge = true"):
        run(host, "false", stage="more", sets=(patch,))
    *_, more = run(host, "false", stage="more", sets=(patch.replace("false", "true"),))
    assert (more / "final" / "model.safetensors").is_file()


def test_without_the_adapter_a_teacher_says_something_else(host):
    """The fault of loading the base instead."""
    (big,) = run(host, "false", stage="big")
    base, adapted = (load_model(str(x), dtype=torch.float32) for x in ("base", big / "final"))
    assert not torch.equal(logits(base), logits(adapted))
    assert LanguageModel(adapted).weight is not None


# What is planned


def plan(*sets, merge="true"):
    Path("mine.toml").write_text(RECIPE.replace("MERGE", merge).replace("TEACHER", "hf"))
    return {
        p.stage.name: p for p in plans_of(read_recipe("mine.toml", plugin_manager([]), sets=sets))
    }


def amounts(plan):
    return dict(plan.estimate.memory)


@pytest.mark.parametrize("merge", ["true", "false"])
def test_a_plan_counts_what_is_trained(merge):
    found = plan(merge=merge)
    assert not any(stage.unknown for stage in found.values())
    parts = found["big"].estimate.parts
    trained = sum(part.trained for part in parts)
    whole = sum(p.numel() for p in load_model("base", dtype=torch.float32).parameters())
    # rank 4 at each matrix of two layers: query, key, value, output; gate, up, down
    assert trained == 2 * 4 * ((32 + 32) + 2 * (32 + 16) + (32 + 32) + 3 * (32 + 48))
    assert sum(part.total for part in parts) == whole + trained
    memory = amounts(found["big"])
    assert memory["student: gradients"] == 4 * trained
    assert memory["student: weights"] == 4 * (whole + trained)
    assert memory["student: optimizer"] == pytest.approx(8 * trained, rel=0.01)
    assert found["big"].estimate.checkpoint == pytest.approx(12 * trained, rel=0.01)
    assert found["big"].estimate.final == 4 * (whole if merge == "true" else trained)
    assert found["more"].estimate.final == 4 * whole


def test_a_plan_knows_that_less_is_kept():
    sets = ("stage.big.student.patch=",)
    adapter, whole = plan()["big"].estimate, plan(*sets)["big"].estimate
    assert adapter.peak < whole.peak
    assert adapter.checkpoint < whole.checkpoint / 5
    assert adapter.checkpointed is not None
