"""Whole runs: what they leave, how they are continued, shared and refused."""

import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path

import forks
import pytest
import torch

from kdcore.errors import RunError, UsageError
from kdcore.models.causal_lm import LanguageModel
from kdcore.plugin.manager import PluginManager
from kdcore.runs.folder import failure_of, locked
from kdcore.runs.runner import RunRequest, run_all

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

[train]
steps = 6
batch = 4
lr = 1e-2
warmup = 2
log_every = 2
eval_every = 3
save_every = 3
eval_rows = 8

[[loss]]
use = "ce"
"""
STAGES = (
    RECIPE
    + """
[stage.teacher]
[stage.student.teacher]
use = "hf"
model = "@teacher"
[[stage.student.loss]]
use = "kl"
"""
)
KILLER = """
from kdcore import hookimpl

@hookimpl
def kdcore_step_start(run, step):
    if step == {step} and run.folder.name.startswith("{name}"):
        raise KeyboardInterrupt
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("one.toml").write_text(RECIPE)
    Path("two.toml").write_text(STAGES)


@pytest.fixture(scope="module")
def host():
    return PluginManager(off=["panel"])


def run(host, recipe="one.toml", **asked):
    return run_all(RunRequest(recipe, asked.pop("out", Path("runs")), **asked), host)


def metrics(folder):
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = {"time", "elapsed", "cpu_seconds", "tokens_per_second"}
    return [{key: line[key] for key in line.keys() - timed} for line in read]


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "final" / "model.safetensors")


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_leaves_everything(host):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (folder,) = run(host)
    there = {path.name for path in folder.iterdir()}
    assert {"recipe.toml", "resolved.toml", "env.json", "metrics.jsonl", "log.txt"} <= there
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"step-3", "step-6"}
    model = AutoModelForCausalLM.from_pretrained(folder / "final")
    tokenizer = AutoTokenizer.from_pretrained(folder / "final")
    assert model.config.vocab_size == len(tokenizer) == 300
    assert "mean_all(CE(q(1), y))" in (folder / "final" / "README.md").read_text()
    lines = metrics(folder)
    assert [line["step"] for line in lines if "loss" in line] == [2, 3, 4, 6]
    assert [line["step"] for line in lines if "eval/nll" in line] == [0, 3, 6]
    assert all({"stage", "step", "tokens"} <= line.keys() for line in lines)
    assert all({"loss/ce", "lr", "kept"} <= line.keys() for line in lines if "loss" in line)


def test_a_finished_run_is_not_run_again(host):
    (folder,) = run(host)
    before = (folder / "metrics.jsonl").read_bytes()
    assert run(host) == [folder]
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_fresh_starts_a_second_run_with_the_same_result(host):
    (first,) = run(host)
    (second,) = run(host, fresh=True)
    assert second.name == f"{first.name}-2"
    assert metrics(first) == metrics(second)
    assert_same_weights(first, second)


def test_what_cannot_change_the_result_shares_the_run(host):
    (first,) = run(host)
    (second,) = run(host, sets=("train.micro_batch=1", "train.log_every=1"))
    assert first == second


@pytest.mark.parametrize("step", [1, 2, 4, 5, 6])
def test_an_interrupted_run_resumes_to_the_same_end(host, step):
    (whole,) = run(host, out=Path("whole"))
    Path("killer.py").write_text(KILLER.format(step=step, name="one"))
    with pytest.raises(KeyboardInterrupt):
        run(PluginManager(off=["panel"], files=["killer.py"]))
    (ended,) = run(host)
    assert metrics(ended) == metrics(whole)
    assert_same_weights(ended, whole)


def test_a_killed_run_resumes_to_the_same_end(host):
    (whole,) = run(host, out=Path("whole"))
    Path("killer.py").write_text(
        KILLER.format(step=5, name="one").replace(
            "raise KeyboardInterrupt", "__import__('os').kill(__import__('os').getpid(), 9)"
        )
    )
    killed = forks.run("kdcore", "run", "one.toml", "-p", "./killer.py")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (ended,) = run(host)
    assert metrics(ended) == metrics(whole)
    assert_same_weights(ended, whole)


@pytest.mark.parametrize("launcher", ["kdcore", "accelerate"])
def test_two_processes_give_what_one_gives(host, launcher):
    (one,) = run(host, out=Path("whole"))
    if launcher == "kdcore":
        done = forks.run("kdcore", "run", "one.toml", "--processes", "2", ACCELERATE_USE_CPU="true")
    else:
        launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        launch += ["--main_process_port", "0", "-m", "kdcore", "run", "one.toml"]
        done = forks.run(*launch, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    (two,) = Path("runs").iterdir()
    for alone, together in zip(metrics(one), metrics(two), strict=True):
        assert alone.pop("stage") == together.pop("stage")
        assert together == pytest.approx(alone, rel=1e-5)


def test_a_run_folder_can_be_named_and_moved(host):
    Path("killer.py").write_text(KILLER.format(step=5, name="one"))
    with pytest.raises(KeyboardInterrupt):
        run(PluginManager(off=["panel"], files=["killer.py"]))
    (begun,) = Path("runs").iterdir()
    begun.rename("elsewhere")
    (ended,) = run(host, "elsewhere")
    (whole,) = run(host, out=Path("whole"))
    assert ended == Path("elsewhere")
    assert metrics(ended) == metrics(whole)
    assert_same_weights(ended, whole)


def test_the_resolved_recipe_gives_the_same_again(host):
    (first,) = run(host)
    (again,) = run(host, str(first / "resolved.toml"), out=Path("again"))
    assert [line.get("loss") for line in metrics(again)] == [
        line.get("loss") for line in metrics(first)
    ]
    assert_same_weights(first, again)


def test_stages_follow_their_references_and_are_shared(host):
    teacher, student = run(host, "two.toml")
    assert [teacher.name[:12], student.name[:12]] == ["two.teacher-", "two.student-"]
    before = (teacher / "metrics.jsonl").read_bytes()
    variants = run(host, "two.toml", each=("stage.student.loss.kl.use=kl,reverse-kl,jsd", "seed=0"))
    assert len(variants) == 4  # the teacher, once, and three students
    Path("three.toml").write_text('extends = "two.toml"\n[stage.student.train]\nsteps = 2\n')
    assert run(host, "three.toml")[0] == teacher  # of another recipe, and the same stage
    assert (teacher / "metrics.jsonl").read_bytes() == before


def test_only_one_stage_with_what_it_needs(host):
    (teacher,) = run(host, "two.toml", stage="teacher")
    assert teacher.name.startswith("two.teacher-")
    with pytest.raises(UsageError, match="no stage 'pupil'"):
        run(host, "two.toml", stage="pupil")


def test_other_data_is_refused_by_name_and_accepted_by_name(host):
    Path("text.txt").write_text("a quiet story of a fox.\n\n" * 40)
    text = "data={use='text', path='text.txt', validation='text.txt', block=32}"
    Path("killer.py").write_text(KILLER.format(step=5, name="one"))
    with pytest.raises(KeyboardInterrupt):
        run(PluginManager(off=["panel"], files=["killer.py"]), sets=(text,))
    Path("text.txt").write_text("another quiet story of a fox.\n\n" * 40)
    with pytest.raises(UsageError, match=r"data: was .*--accept data"):
        run(host, sets=(text,))
    (folder,) = run(host, sets=(text,), accept=frozenset({"data"}))
    assert (folder / "final").is_dir()


def test_a_run_waits_for_another_process_in_its_folder(host, monkeypatch, caplog):
    (folder,) = run(host)
    for path in (folder / "final").iterdir():
        path.unlink()
    (folder / "final").rmdir()
    taken = ExitStack()
    taken.enter_context(locked(folder))
    caplog.set_level("INFO", "kdcore")
    monkeypatch.setattr("kdcore.runs.lock.rest", taken.close)
    assert run(host) == [folder] and (folder / "final" / "config.json").is_file()
    (said,) = [each.message for each in caplog.records if "waiting for it" in each.message]
    assert f"({os.getpid()} on " in said


def test_a_stage_that_another_process_finishes_meanwhile_is_used(host, monkeypatch):
    (folder,) = run(host)
    done, taken = folder / "final", ExitStack()
    done.rename(folder / "elsewhere")
    taken.enter_context(locked(folder))

    def finish():
        (folder / "elsewhere").rename(done)
        taken.close()

    monkeypatch.setattr("kdcore.runs.lock.rest", finish)
    before = (folder / "metrics.jsonl").read_bytes()
    assert run(host) == [folder] and (folder / "metrics.jsonl").read_bytes() == before


def test_a_failure_of_one_variant_does_not_stop_the_others(host):
    with pytest.raises(RunError, match="1 of 2 failed"):
        run(host, each=("train.lr=1e-2,1e30",))
    assert len([path for path in Path("runs").iterdir() if (path / "final").is_dir()]) == 1
    (why,) = filter(None, map(failure_of, Path("runs").glob("*-*")))
    assert "is not finite" in why and not why.endswith(":")


@pytest.mark.parametrize("way", ["run", "recipe"])
def test_a_finished_run_is_extended_where_that_is_accepted(host, way):
    (folder,) = run(host)
    sets, accept = ("train.steps=9",), frozenset({"train.steps"})
    if way == "run":
        with pytest.raises(UsageError, match=r"train.steps: was 6, is 9. Type --accept train.ste"):
            run(host, str(folder), sets=sets)
        assert (folder / "final").is_dir()
    asked = str(folder) if way == "run" else "one.toml"
    assert run(host, asked, sets=sets, accept=accept) == [folder]
    assert metrics(folder)[-1]["step"] == 9
    assert run(host, asked, sets=sets, accept=accept) == [folder]
    assert run(host, str(folder)) == [folder]
    assert "steps = 9" in (folder / "resolved.toml").read_text()
    (again,) = run(host)  # the recipe itself asks for six steps
    assert again.name == f"{folder.name}-2"
    assert metrics(again)[-1]["step"] == 6


def test_a_run_does_not_become_one_of_fewer_steps_than_it_has(host):
    (folder,) = run(host)
    accept = frozenset({"train.steps"})
    for asked in (str(folder), "one.toml"):
        with pytest.raises(UsageError, match=r"is at step 6 already, .* type --set train.steps=6"):
            run(host, asked, sets=("train.steps=5",), accept=accept)
    assert (folder / "final").is_dir() and "steps = 6" in (folder / "resolved.toml").read_text()
    with pytest.raises(UsageError, match=r"is at step 6 already, .* end it after step 1: type a"):
        run(host, str(folder), sets=("train.tokens=4",), accept=accept)
    assert run(host, str(folder), sets=("train.steps=7",), accept=accept) == [folder]
    assert metrics(folder)[-1]["step"] == 7


def test_another_recipe_resumes_a_run_only_if_accepted(host):
    Path("killer.py").write_text(KILLER.format(step=5, name="one"))
    with pytest.raises(KeyboardInterrupt):
        run(PluginManager(off=["panel"], files=["killer.py"]))
    (folder,) = Path("runs").iterdir()
    sets = ("loss.ce.weight=2.0", "train.warmup=1", "train.log_every=5")
    with pytest.raises(UsageError) as caught:
        run(host, str(folder), sets=sets)
    assert "train.warmup: was 2.0, is 1.0" in str(caught.value)
    assert "loss.1.weight: was 1.0, is 2.0" in str(caught.value)
    assert "log_every" not in str(caught.value)
    assert run(host, str(folder), sets=sets[2:]) == [folder]  # that changes nothing


BREAKS = """
import math
from kdcore import Loss, component, hookimpl

@component
class Breaks(Loss):
    name = "breaks"
    needs_teacher = False

    @hookimpl
    def kdcore_step_start(self, run, step):
        self.value = math.inf if step == 5 else 0.0

    def per_token(self, student, teacher, labels):
        return student[:, 0] * 0 + self.value

@hookimpl
def kdcore_losses():
    return [Breaks]
"""


def test_a_step_that_is_not_finite_is_reported_kept_and_skipped_on_request():
    """The code of docs/long-runs.md looks at it."""
    Path("breaks.py").write_text(BREAKS)
    Path("one.toml").write_text(RECIPE + '[[loss]]\nuse = "breaks"\n')
    with_it = PluginManager(off=["panel"], files=["breaks.py"])
    with pytest.raises(RunError, match=r"step 5 is not finite: breaks in 4 of its 4 rows") as shown:
        run(with_it)
    (folder,) = Path("runs").iterdir()
    assert (folder / "checkpoints" / "step-4").is_dir()
    docs = Path(__file__).resolve().parents[2] / "docs" / "long-runs.md"
    code = docs.read_text().partition("```python\n")[2].partition("```")[0]
    seen = []
    names = {"print": lambda *said: seen.append(said)}
    exec(code.replace("open()", 'open(plugins=["./breaks.py"])'), names)
    assert len(seen) == 4 and all(score < 0 for score, _ in seen)
    assert any(repr(text[:20])[1:-1] in str(shown.value) for _, text in seen)
    (again,) = run(with_it, sets=("train.non_finite=skip",))
    assert again == folder and (folder / "final").is_dir()
    assert [line["step"] for line in metrics(folder) if "loss" in line] == [2, 3, 4, 6]


def test_the_trunk_is_compiled_where_the_recipe_says_so(monkeypatch):
    compiled = []
    monkeypatch.setattr(LanguageModel, "compile_layers", lambda model: compiled.append(model))
    for wanted in ("false", "true"):
        few = ("train.steps=1", "train.eval_first=false", f"train.compile_trunk={wanted}")
        run_all(RunRequest("one.toml", sets=few, out=Path(wanted)), PluginManager())
        assert len(compiled) == (wanted == "true")
