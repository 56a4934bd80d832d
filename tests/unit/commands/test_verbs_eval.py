"""`kdcore eval`: a run's numbers again, another eval, other models, and what is kept of it."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import typer
from typer.testing import CliRunner

from kdcore import RunError, UsageError
from kdcore.commands.comparison.groups import summarize_run
from kdcore.commands.evaluate import evaluate
from kdcore.plugin.manager import PluginManager
from kdcore.runs.reading.history import History
from kdcore.runs.reading.metrics import latest_values, read_metrics
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
steps = 4
batch = 4
lr = 1e-2
eval_every = 2
save_every = 2
eval_rows = 8
[[loss]]
use = "ce"
[stage.teacher]
[stage.student.teacher]
use = "hf"
model = "@teacher"
[[stage.student.loss]]
use = "kl"
[[stage.student.eval]]
use = "agreement"
"""
# An eval that needs neither rows nor a teacher, and one that needs a teacher.
PLUGIN = """
from kdcore import Eval, component, hookimpl

@component
class Teaches(Eval):
    name = "teaches"
    needs_teacher = True

    def measure(self, run):
        return {"teaches": float(run.teacher.gives_logits())}

@component
class Width(Eval):
    name = "width"
    factor: float = 1.0

    def measure(self, run):
        ids = run.tokenizer("Once upon").input_ids
        return {"width": self.factor * run.student.config.hidden_size, "width/text": str(len(ids))}

@hookimpl
def kdcore_evals():
    return [Teaches, Width]
"""

app = typer.Typer()
app.command()(evaluate)


def typed(*arguments):
    plugin = ("-p", "./width.py")
    done = CliRunner().invoke(app, [*map(str, arguments), *plugin], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def as_json(*arguments):
    return json.loads(typed(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    place = tmp_path_factory.mktemp("ran")
    (place / "two.toml").write_text(RECIPE)
    (place / "width.py").write_text(PLUGIN)
    tiny.save(place / "another")
    run_all(RunRequest(str(place / "two.toml"), place / "runs"), PluginManager(off=["panel"]))
    return place


@pytest.fixture
def here(ran, tmp_path, monkeypatch):
    """A copy that a test may add to."""
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (student,) = Path("runs").glob("two.student-*")
    return student


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scores_at(folder, step):
    (line,) = [each for each in lines(folder) if each["step"] == step and "eval/nll" in each]
    return {key[5:]: each for key, each in line.items() if key.startswith("eval/")}


# ---- runs ------------------------------------------------------------------------


def test_what_is_set_counts_for_a_stage_with_data_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "width.py").write_text(PLUGIN)
    table, _, _ = RECIPE.partition("[stage.teacher]")
    (tmp_path / "own.toml").write_text(f"{table}[stage.small.data]\nstories = 20\n")
    sets = ("train.steps=0", "train.eval_rows=all")
    run_all(RunRequest("own.toml", Path("runs"), sets=sets), PluginManager(off=["panel"]))
    (whole,) = as_json("own.small")
    (few,) = as_json("own.small", "--set", "train.eval_rows=2")
    assert few["scores"]["nll"] != whole["scores"]["nll"]
    assert (
        few["scores"] == as_json("own.small", "--set", "stage.small.train.eval_rows=2")[0]["scores"]
    )


def test_the_held_out_rows_are_the_same_for_every_seed(here):
    found = [as_json("two.student", "--set", f"seed={seed}")[0]["scores"] for seed in range(10)]
    assert found == [scores_at(here, 4)] * 10
    (other,) = as_json("two.student", "--set", "train.eval_seed=1")
    assert other["scores"] != found[0]


def test_a_run_of_no_steps_writes_its_first_weights_and_what_they_measure(here):
    sets = ("train.steps=0", "train.eval_first=false", "stage.student.train.steps=0")
    Path("runs/none").mkdir()
    teacher, student = run_all(
        RunRequest("two.toml", Path("runs/none"), sets=sets), PluginManager(off=["panel"])
    )
    assert (teacher / "final" / "model.safetensors").is_file()
    (line,) = lines(student)
    assert line["step"] == 0 and line["eval/nll"] > 0
    (said,) = as_json(student)
    assert said["scores"]["nll"] == line["eval/nll"]


def test_a_run_from_before_is_measured_on_the_rows_that_its_seed_drew(here):
    resolved = here / "resolved.toml"
    now = resolved.read_text()
    old = "".join(line for line in now.splitlines(True) if not line.startswith("eval_seed"))
    resolved.write_text(old.replace("seed = 0", "seed = 1", 1))
    found = [as_json("two.student", "--set", f"seed={seed}")[0]["scores"] for seed in (0, 5)]
    resolved.write_text(now)
    (expected,) = as_json("two.student", "--set", "train.eval_seed=1")
    assert found == [expected["scores"]] * 2


def test_the_numbers_are_those_of_the_run(here):
    before, own = lines(here), scores_at(here, 4)
    assert own.keys() == {"nll", "perplexity", "bits_per_byte", "agreement", "kl", "teacher_nll"}
    (said,) = as_json("two.student")
    assert said == {
        "model": "two.student",
        "run": str(here),
        "step": 4,
        "kept": True,
        "scores": own,
    }
    after = lines(here)
    assert after[:-1] == before
    added = after[-1]
    assert {key[5:]: each for key, each in added.items() if "/" in key} == own
    assert added["again"] is True and added["time"] > before[-1]["time"]
    about = ("stage", "step", "tokens")
    assert [added[key] for key in about] == [before[-1][key] for key in about]


def test_a_table(here):
    rows = [line.split() for line in typed("two.student", "two.teacher").stdout.splitlines()]
    assert rows[0] == ["eval", "two.student", "(step", "4)", "two.teacher", "(step", "4)"]
    assert [row[0] for row in rows[1:]] == [*scores_at_names(here)]
    assert rows[-1][-1] == "-"  # the teacher has no teacher to agree with


def scores_at_names(folder):
    return [key[5:] for key in lines(folder)[-1] if key.startswith("eval/")]


def test_the_run_stays_as_busy_as_it_was(here):
    before = (here / "metrics.jsonl").stat().st_mtime_ns
    typed("two.student", "--use", "perplexity")
    assert (here / "metrics.jsonl").stat().st_mtime_ns == before


def test_only_one_eval_and_one_that_the_recipe_lacks(here):
    (said,) = as_json("two.student", "--use", "perplexity")
    assert said["scores"].keys() == {"nll", "perplexity", "bits_per_byte", "teacher_nll"}
    sets = ("--set", "eval.width.factor=2.0")
    done = typed("two.student", "--use", "width", *sets)
    assert done.stdout.splitlines()[1].split() == ["width", "32.000"]
    added = lines(here)[-1]
    assert (added["eval/width"], added["set"]) == (32.0, "eval.width.factor=2.0")
    assert added["eval/width/text"] in done.stdout


def test_readers_are_not_confused(here):
    before, summary = read_metrics(here), summarize_run(here)
    latest = latest_values(here, ("loss", "eval/nll"))
    with (here / "metrics.jsonl").open("a") as file:
        again = {"stage": "student", "step": 4, "tokens": 1, "time": 9e9, "again": True}
        file.write(json.dumps({**again, "eval/nll": 99.0, "eval/width": 16.0}) + "\n")
    assert read_metrics(here)[:-1] == before
    history = History(read_metrics(here))
    assert history.series["eval/nll"].now == History(before).series["eval/nll"].now
    assert summarize_run(here).scores == {**summary.scores, "width": 16.0}
    now = latest_values(here, ("loss", "eval/nll"))
    assert now == {**latest, "again": True, "eval/width": 16.0}


def test_what_is_changed_is_not_kept(here):
    before = lines(here)
    done = typed("two.student", "--set", "train.eval_rows=all", "--json")
    assert "so its record stays as it is" in done.stderr
    (said,) = json.loads(done.stdout)
    assert said["scores"]["nll"] != scores_at(here, 4)["nll"] and not said["kept"]
    assert lines(here) == before


def test_a_checkpoint_is_not_the_end(here):
    before = lines(here)
    (said,) = as_json("two.student", "--step", 2)
    assert said["scores"] == scores_at(here, 2) and (said["step"], said["kept"]) == (2, False)
    shutil.rmtree(here / "final")
    (said,) = as_json("two.student")  # as if it had not come to its end
    assert said["scores"] == scores_at(here, 4) and not said["kept"]
    assert lines(here) == before


def test_a_run_whose_checkpoints_are_gone(here):
    own = scores_at(here, 4)
    shutil.rmtree(here / "checkpoints")
    (said,) = as_json("two.student")
    assert (said["step"], said["kept"], said["scores"]) == (4, True, own)


def test_a_run_that_kept_no_record(here):
    (here / "metrics.jsonl").unlink()
    (said,) = as_json("two.student", "--use", "width")
    assert not said["kept"] and not (here / "metrics.jsonl").exists()


# ---- models and recipes ------------------------------------------------------------


def test_a_model_in_the_place_of_a_stages_student(here):
    final = str(here / "final")
    model, run = as_json(final, "two.student", "--recipe", "two.toml")
    assert model["scores"] == run["scores"] == scores_at(here, 4)
    assert (model["run"], model["kept"], run["kept"]) == (None, False, False)
    (teacher,) = Path("runs").glob("two.teacher-*")
    asked = (teacher / "final", "--recipe", "two.toml", "--stage", "teacher")
    assert as_json(*asked)[0]["scores"] == scores_at(teacher, 4)


def test_an_eval_that_only_the_asked_stage_can_have(here):
    final = str(here / "final")
    (said,) = as_json(final, "--recipe", "two.toml", "--use", "teaches")
    assert said["scores"] == {"teaches": 1.0}
    with pytest.raises(UsageError, match="the stage 'teacher' has no \\[teacher\\]"):
        typed(final, "--recipe", "two.toml", "--use", "teaches", "--stage", "teacher")


def test_a_model_with_a_tokenizer_of_its_own(here):
    asked = ("another", "--recipe", "two.toml", "--stage", "teacher", "--use", "perplexity")
    (said,) = as_json(*asked)
    assert 0 < said["scores"]["bits_per_byte"] < 20


def test_the_teacher_of_a_recipe_that_was_not_run(here):
    final = str(here / "final")
    elsewhere = ("--recipe", "two.toml", "--out", "elsewhere")
    asked = r"the stage 'teacher'.*not finished in elsewhere: kdcore run two.toml --stage teacher"
    with pytest.raises(UsageError, match=asked):
        typed(final, *elsewhere)
    (said,) = as_json(final, *elsewhere, "--use", "perplexity")
    assert said["scores"]["nll"] == scores_at(here, 4)["nll"]
    assert not Path("elsewhere").exists()


def test_a_model_by_itself(here):
    asked = ("--use", "width", "--set", "eval.width.factor=3")
    one, other = as_json("another", here / "final", *asked)
    assert (one["scores"]["width"], other["scores"]["width"]) == (96.0, 48.0)
    assert one["step"] is None


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["another"], "another is not a run: --recipe R measures"),
        (["another", "--use", "perplexity"], "no recipe names a text to measure on; give one"),
        (
            ["another", "--use", "agreement"],
            "'agreement' needs a teacher, and no recipe says which",
        ),
        (["another", "--use", "widht"], "did you mean 'width'"),
        (["another", "--use", "width", "--set", "eval.width.factr=1"], "has no option 'factr'"),
        (["another", "--use", "width", "--set", "data.block=1"], "no data to set"),
        (["another", "--use", "width", "--step", "2"], "another is not a run"),
        (["two.student", "--stage", "student"], "--stage needs --recipe"),
        (["two.student", "--recipe", "two.toml", "--step", "2"], "takes finished models"),
        (["another", "--recipe", "two.toml", "--stage", "pupil"], "no stage 'pupil': teacher, stu"),
        (["two.student", "--step", "3"], "no checkpoint of step 3"),
        (["two.student", "--use", "widht"], "did you mean 'width'"),
        (["three"], "there is no run 'three'"),
    ],
)
def test_what_cannot_be_measured(here, arguments, said):
    before = lines(here)
    with pytest.raises(UsageError) as raised:
        typed(*arguments)
    assert said in str(raised.value)
    assert lines(here) == before


def test_a_model_that_is_not_on_the_hub(here):
    with pytest.raises(RunError, match="cannot load 'owner/fox'"):
        typed("owner/fox", "--use", "width")
