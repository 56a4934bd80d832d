"""What trackers are told: TensorBoard's files read back, others through classes in their place."""

import json
import logging
import math
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import ClassVar

import pytest
import tomli_w
import yaml
from kdcore_tracker import Tracker, kdcore_loggers
from kdcore_tracker.settings import settings_of
from recorded_runs import STORY, a_record, fake_run, keep_run, some_scores

from kdcore.plugin.manager import Events

tensorboard = pytest.importorskip("tensorboard")


def read(folder):
    """What TensorBoard shows of a run: scalars and texts by tag and step, as it reads them."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    seen = EventAccumulator(str(folder / "tensorboard"))
    seen.Reload()
    scalars, texts = {}, {}
    for tag in seen.Tags()["tensors"]:
        events = [(event.step, make_ndarray(event.tensor_proto)) for event in seen.Tensors(tag)]
        if seen.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            scalars[tag] = [(step, value.item()) for step, value in events]
        else:
            texts[tag] = [(step, value.item().decode()) for step, value in events]
    return scalars, texts


@pytest.fixture(autouse=True)
def files_in_order(monkeypatch):
    """TensorBoard reads files by name: the second they began, then a count without zeros."""
    from tensorboard.summary.writer import event_file_writer as writer

    monkeypatch.setattr(writer, "_global_uid", writer.AtomicCounter(0))


def tell(tracker, run, *steps, **changes):
    """Records at these steps, and scores at each hundredth."""
    for step in steps:
        if step:
            tracker.kdcore_log(a_record(step, **changes))
        if step % 100 == 0:
            tracker.kdcore_scores(step, some_scores(step))


def steps(scalars, tag):
    return [step for step, _ in scalars[tag]]


def test_tensorboard_shows_what_was_logged(tmp_path):
    folder = keep_run(tmp_path, "quickstart.kd-1a2b3c4d")
    run, tracker = fake_run(folder), Tracker()
    tracker.kdcore_run_start(run)
    tell(tracker, run, 0, 10, 100)
    tracker.kdcore_run_end()
    scalars, texts = read(folder)
    record = a_record(100)
    assert steps(scalars, "loss") == [10, 100] and steps(scalars, "eval/nll") == [0, 100]
    for tag, value in {
        "loss": record.loss,
        "loss/ce": record.terms["ce"],
        "loss/kl": record.terms["kl"],
        "lr": record.lr,
        "kept": 0.6,
        "tokens": 90_000,
        "tokens_per_second": 12345.6,
        "selection/threshold": 0.4,
        "eval/agreement": some_scores(100)["agreement"],
    }.items():
        assert scalars[tag][-1] == (100, pytest.approx(value, rel=1e-6))
    assert "step" not in scalars and "eval/story" not in scalars
    assert texts["eval/story/text_summary"] == [(0, STORY), (100, STORY)]


def test_the_recipe_is_kept_once(tmp_path):
    folder = keep_run(tmp_path, "quickstart.kd-1a2b3c4d")
    for step in (0, 20):
        tracker = Tracker()
        tracker.kdcore_run_start(fake_run(folder, step=step))
        tracker.kdcore_run_end()
    (kept,) = (folder / "tensorboard").rglob("hparams.yml")
    settings = yaml.safe_load(kept.read_text())
    assert settings == settings_of(folder)
    assert settings["train.lr"] == 0.006 and settings["loss.2.use"] == "kl"


def test_a_continued_run_has_each_step_once(tmp_path):
    folder = keep_run(tmp_path, "a-1")
    before = Tracker()
    before.kdcore_run_start(fake_run(folder))
    tell(before, fake_run(folder), 0, 50, 100, 150, 200)  # and then the machine went away
    run, after = fake_run(folder, step=100), Tracker()
    after.kdcore_run_start(run)
    tell(after, run, 150, loss=7.0)
    after.kdcore_run_end()
    scalars, texts = read(folder)
    assert steps(scalars, "loss") == [50, 100, 150] and scalars["loss"][-1] == (150, 7.0)
    assert steps(scalars, "eval/nll") == [0, 100]
    assert [step for step, _ in texts["eval/story/text_summary"]] == [0, 100]


def test_a_run_without_a_checkpoint_starts_over(tmp_path):
    folder = keep_run(tmp_path, "a-1")
    for loss in (3.0, 4.0):
        tracker, run = Tracker(), fake_run(folder)
        tracker.kdcore_run_start(run)
        tell(tracker, run, 0, 10, loss=loss)
        tracker.kdcore_run_end()
    scalars, _ = read(folder)
    assert scalars["loss"] == [(10, 4.0)] and steps(scalars, "eval/nll") == [0]


def test_other_processes_tell_nothing(tmp_path):
    tracker, run = Tracker(), fake_run(tmp_path, main=False)
    tracker.kdcore_run_start(run)
    tell(tracker, run, 0, 100)
    tracker.kdcore_run_end()
    assert list(tmp_path.iterdir()) == []


class Service:
    """In the place of accelerate's trackers: notes what it is told, fails on request."""

    made: ClassVar[list] = []
    failing: ClassVar[str] = ""

    def __init__(self, run_name, **arguments):
        self.arguments = {"project": run_name, **arguments}
        self.config, self.lines, self.finished = None, [], False
        Service.made.append(self)

    def start(self):
        print("* a service greets")
        self._do("start")

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step):
        self._do("log")
        self.lines.append((step, values))

    def finish(self):
        self.finished = True
        print("* goodbye")

    def _do(self, what):
        if what == Service.failing:
            raise ConnectionError("the service is down")


@pytest.fixture
def services(monkeypatch):
    from accelerate import tracking

    for name in ("trackio", "wandb"):
        monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, Service)
    monkeypatch.setattr(Service, "made", [])
    monkeypatch.setattr(Service, "failing", "")
    return Service.made


@pytest.mark.parametrize("to", ["trackio", "wandb"])
def test_services_are_reported_each_step_once(tmp_path, services, to, capsys):
    folder = keep_run(tmp_path, "a-1")
    before = Tracker(to=to, project="stories")
    before.kdcore_run_start(fake_run(folder))
    tell(before, fake_run(folder), 0, 50, 100, 150)
    run, after = fake_run(folder, step=100), Tracker(to=to, project="stories")
    after.kdcore_run_start(run)
    tell(after, run, 150, 200)
    after.kdcore_run_end()
    first, second = services
    assert first.arguments["project"] == "stories" and first.arguments["name"] == "a-1"
    assert first.config == second.config == settings_of(folder)
    assert [step for step, _ in first.lines] == [0, 50, 100, 100, 150]
    assert [step for step, _ in second.lines] == [200, 200]
    assert second.lines[1][1]["eval/story"] == STORY
    assert second.finished and not first.finished
    resume = [service.arguments["resume"] for service in services]
    assert resume == (["never", "allow"] if to == "trackio" else ["allow", "allow"])
    assert first.arguments.get("id") == second.arguments.get("id")
    assert capsys.readouterr().out == ""


def test_runs_of_the_same_name_are_not_taken_for_one(tmp_path, services):
    for out in ("one", "two"):
        Tracker(to="wandb").kdcore_run_start(fake_run(keep_run(tmp_path / out, "a-1")))
    ids = [service.arguments["id"] for service in services]
    assert len(set(ids)) == 2


def test_two_trackers_do_not_take_each_others_steps(tmp_path, services):
    folder = keep_run(tmp_path, "a-1")
    some = [Tracker(to="wandb"), Tracker(to="trackio"), Tracker(to="trackio", project="other")]
    for tracker in some:
        tracker.kdcore_run_start(fake_run(folder))
    for tracker in some:
        tell(tracker, fake_run(folder), 50)
    assert [[step for step, _ in service.lines] for service in services] == [[50]] * 3
    assert len(json.loads((folder / "tracker.json").read_text())) == 3


@pytest.mark.parametrize("failing", ["start", "log"])
def test_a_tracker_that_fails_stops_no_run(tmp_path, services, failing, caplog, monkeypatch):
    monkeypatch.setattr(Service, "failing", failing)
    run, tracker = fake_run(keep_run(tmp_path, "a-1")), Tracker(to="wandb")
    events = Events(lambda plugin: f"the logger {plugin.name!r}")
    with caplog.at_level(logging.WARNING), events.listening([tracker]):
        events.emit("kdcore_run_start", {"run": run})
        for step in (10, 20):
            events.emit("kdcore_log", {"run": run, "record": a_record(step)})
        events.emit("kdcore_run_end", {"run": run, "error": None})
    (said,) = [record.getMessage() for record in caplog.records]
    assert "'tracker' raised" in said
    assert "is now disabled: ConnectionError: the service is down" in said
    assert services[0].lines == []


@pytest.mark.parametrize("to", ["tensorboard", "trackio", "wandb"])
@pytest.mark.parametrize("found", [None, ModuleSpec("wandb", None)])
def test_a_missing_library_is_an_error(to, found, monkeypatch):
    # A folder that is called as the library is no library.
    monkeypatch.setattr("kdcore_tracker.find_spec", lambda name: found)
    (said,) = Tracker(to=to).faults(None)
    line = "wandb" if to == "wandb" else '"kdcore[trackers]"'
    assert said == f"the logger 'tracker' needs {to}: pip install {line}"


def test_an_installed_library_is_no_error():
    assert list(Tracker().faults(None)) == []


def test_settings_hold_no_secrets(tmp_path):
    recipe = {
        "seed": 0,
        "name": "x",
        "student": {"model": "m", "eos_token": "<end>", "max_new_tokens": 3},
        "data": {
            "token": "abc",
            "api_key": "abc",
            "url": "https://me:abc@host/place",
            "texts": ["hf_abcdefghijkl", "kept"],
            "prompts": [],
        },
        "loss": [{"use": "ce", "weight": {"start": 1.0}}, {"use": "kl"}],
    }
    (tmp_path / "resolved.toml").write_text(tomli_w.dumps(recipe))
    assert settings_of(tmp_path) == {
        "seed": 0,
        "name": "x",
        "student.model": "m",
        "student.eos_token": "<end>",
        "student.max_new_tokens": 3,
        "data.token": "***",
        "data.api_key": "***",
        "data.url": "https://host/place",
        "data.texts": '["***", "kept"]',
        "data.prompts": "[]",
        "loss.1.use": "ce",
        "loss.1.weight.start": 1.0,
        "loss.2.use": "kl",
    }


def test_what_is_not_finite_is_reported(tmp_path):
    folder = keep_run(tmp_path, "a-1")
    run, tracker = fake_run(folder), Tracker()
    tracker.kdcore_run_start(run)
    tell(tracker, run, 10, loss=math.nan)
    tracker.kdcore_run_end()
    assert math.isnan(read(folder)[0]["loss"][0][1])


@pytest.mark.slow
def test_nothing_is_imported_before_a_run_begins():
    code = (
        "import sys, kdcore_tracker; kdcore_tracker.Tracker(); "
        "print([m for m in ('tensorboard', 'accelerate') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


RECIPE = """
tokenizer = {use = "bpe", vocab_size = 300}
data = {use = "stories", stories = 30, validation = 5, block = 32}
loss = [{use = "ce"}]
[student.config]
model_type = "llama"
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
[train]
steps = 4
lr = 1e-2
log_every = 2
eval_rows = 8
"""


@pytest.mark.slow
def test_log_tracker_on_the_command_line(tmp_path):
    (tmp_path / "r.toml").write_text(RECIPE)
    command = [sys.executable, "-m", "kdcore", "run", "r.toml", "--log", "tracker"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = Path(tmp_path / "runs").glob("r-*")
    scalars, _ = read(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for tag in ("loss", "loss/ce", "lr", "eval/nll", "tokens_per_second"):
        expected = [(line["step"], line[tag]) for line in lines if tag in line]
        assert scalars[tag] == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]
    assert steps(scalars, "loss") == [2, 4]


def test_hook_kdcore_loggers():
    assert kdcore_loggers() == [Tracker]
    assert not Tracker.always
