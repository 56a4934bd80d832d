"""The coordinator on an executor that trains nothing: order, retries, what is found again."""

import json
import os
import signal
from pathlib import Path

import pytest
from sweeping import STAGES, SWEEP, Pretended, points

from kdcore.api.jobs import JobState
from kdcore.errors import Interrupted, RunError, UsageError
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe
from kdcore.runs.folder import failure_of
from kdcore.sweeps.coordinator import Coordinator
from kdcore.sweeps.graph import tasks_of
from kdcore.sweeps.store import Store

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def host():
    return PluginManager(off=["panel"])


class Sweep:
    """A sweep on a pretended executor, and what it showed."""

    def __init__(self, host, executor, text=STAGES + SWEEP, retries=2):
        found = points(host, text)
        self.store = Store(Path("runs"), "r", host)
        self.store.folder.mkdir(parents=True, exist_ok=True)
        self.executor, self.states = executor, []
        self.coordinator = Coordinator(
            tasks_of(found), self.store, executor, retries, (), self.show
        )

    def show(self, progress):
        self.states.append([(each.phase, each.reason) for each in progress])

    def run(self):
        self.coordinator.run()
        return [job.name for job in self.executor.jobs]


def test_what_is_needed_runs_first_and_once(host):
    executor = Pretended(host)
    big, *small = Sweep(host, executor).run()
    assert big.startswith("r.big-") and len(small) == len({*small}) == 2
    assert [job.after for job in executor.jobs] == [()] * 3
    assert Sweep(host, Pretended(host)).run() == []  # all of it is there


def test_there_is_room_for_so_many(host):
    executor = Pretended(host, room=1)
    sweep = Sweep(host, executor)
    sweep.run()
    assert max(sum(phase == "queued" for phase, _ in each) for each in sweep.states) == 1


def test_jobs_that_wait_for_one_another_are_submitted_at_once(host):
    executor = Pretended(host, room=9, chains=True)
    executor.states = lambda handles: {each: JobState("running") for each in handles}
    sweep = Sweep(host, executor)
    sweep.coordinator.show = lambda progress: setattr(sweep.coordinator, "signal", signal.SIGTERM)
    with pytest.raises(Interrupted):
        sweep.run()
    assert [job.after for job in executor.jobs] == [(), ("1",), ("1",)]
    assert executor.cancelled == ["1", "2", "3"]


def test_a_run_that_fails_is_tried_again_and_its_followers_are_reported(host):
    executor = Pretended(host, ends=[1, 1, 1])
    sweep = Sweep(host, executor)
    with pytest.raises(RunError, match=r"3 of 3 runs failed; the same command tries") as error:
        sweep.run()
    assert len(executor.jobs) == 3 and "it ended with 1" in str(error.value)
    assert [phase for phase, _ in sweep.states[-1]] == ["failed", "blocked", "blocked"]
    executor = Pretended(host, ends=[1, 1])
    assert len(Sweep(host, executor).run()) == 5


@pytest.mark.parametrize("code", [2, 3])
def test_what_cannot_end_otherwise_is_not_tried_again(host, code):
    executor = Pretended(host, ends=[code])
    with pytest.raises(RunError, match="3 of 3"):
        Sweep(host, executor).run()
    assert len(executor.jobs) == 1


def test_a_run_that_gets_on_may_be_ended_ever_so_often(host):
    executor = Pretended(host)
    ends = iter(range(1, 8))

    def end(job):
        step = next(ends, None)
        if step is None:
            return Pretended.end(executor, job)
        (executor.folder_of(job) / "checkpoints" / f"step-{step}").mkdir(parents=True)
        return JobState("ended", None, "signal 9 killed it")

    executor.end = end
    assert len(Sweep(host, executor, retries=0).run()) == 7 + 3


def test_the_reason_is_what_the_run_itself_said(host):
    executor = Pretended(host)

    def end(job):
        executor.folder_of(job).mkdir(parents=True, exist_ok=True)
        (executor.folder_of(job) / "failure.txt").write_text("the loss is not finite\n")
        return JobState("ended", 1)

    executor.end = end
    with pytest.raises(RunError, match="the loss is not finite"):
        Sweep(host, executor, retries=0).run()


def test_what_the_executor_says_of_a_run_stands_in_its_folder(host):
    executor = Pretended(host)

    def end(job):
        folder = executor.folder_of(job)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.toml").touch()
        return JobState("ended", None, "its node failed")

    executor.end = end
    with pytest.raises(RunError, match="its node failed"):
        Sweep(host, executor, retries=0).run()
    (folder,) = Path("runs").glob("r.big-*")
    assert failure_of(folder) == "its node failed"


def test_what_the_machine_refuses_is_reported_in_its_own_words(host):
    executor = Pretended(host)

    def start(job):
        raise RunError("invalid partition specified: gpuu")

    executor.start = start
    with pytest.raises(RunError, match="invalid partition specified: gpuu"):
        Sweep(host, executor).run()


def test_submitted_jobs_are_found_again_by_the_same_command(host):
    first = Pretended(host, room=9, outlives=True, chains=True)
    first.states = lambda handles: {each: JobState("running") for each in handles}
    sweep = Sweep(host, first)
    sweep.coordinator.show = lambda progress: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Interrupted, match=r"3 submitted jobs continue.*--cancel"):
        sweep.run()
    assert first.cancelled == []
    second = Pretended(host, outlives=True, chains=True)
    second.open = first.open
    assert Sweep(host, second).run() == [] and second.open == {}


def test_jobs_of_points_that_were_removed_stay_known(host, caplog):
    executor = Pretended(host, room=9, outlives=True, chains=True)
    executor.states = lambda handles: {each: JobState("running") for each in handles}

    def interrupted(text):
        sweep = Sweep(host, executor, text)
        sweep.coordinator.show = lambda progress: os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            sweep.run()
        return sweep.store.jobs_of("pretended")

    first = interrupted(STAGES + SWEEP)
    assert interrupted(STAGES + SWEEP.replace("[0, 1]", "[0]")) == first and len(first) == 3
    gone = list(first.values())[-1]
    assert f"jobs of other points continue ({gone}); --cancel ends them too" in caplog.text
    del executor.states
    executor.open.pop(gone)  # that one ended
    sweep = Sweep(host, executor, STAGES + SWEEP.replace("[0, 1]", "[0]"))
    assert sweep.run() is not None and sweep.store.jobs_of("pretended") == {}


def test_jobs_of_another_executor_stay_known(host, caplog):
    store = Sweep(host, Pretended(host)).store
    store.folder.mkdir(parents=True, exist_ok=True)
    store.keep_jobs("slurm", {"a": "1"})
    store.keep_jobs("ray", {"a": "2"})
    store.keep_jobs("ray", {})
    assert (store.jobs_of("slurm"), store.jobs_of("ray")) == ({"a": "1"}, {})
    assert caplog.text == ""
    for text in ("{", "3"):
        (store.folder / "jobs.json").write_text(text)
        assert store.jobs_of("slurm") == {}
        assert "jobs.json is damaged: jobs submitted before are not known" in caplog.text
        caplog.clear()


def test_a_lost_job_is_started_again(host):
    first = Pretended(host, room=9, outlives=True, chains=True)
    first.states = lambda handles: {each: JobState("running") for each in handles}
    sweep = Sweep(host, first)
    sweep.coordinator.show = lambda progress: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted) as error:
        sweep.run()
    assert error.value.exit_code == 143
    assert len(Sweep(host, Pretended(host, outlives=True)).run()) == 3


def test_what_failed_under_an_earlier_command_is_tried_by_the_next(host):
    first = Pretended(host, room=9, outlives=True, chains=True)
    first.states = lambda handles: {each: JobState("running") for each in handles}
    sweep = Sweep(host, first)
    sweep.coordinator.show = lambda progress: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted):
        sweep.run()
    second = Pretended(host, ends=[3], outlives=True, chains=True)
    second.open = first.open
    sweep = Sweep(host, second, retries=0)
    assert [name.split("-")[0] for name in sweep.run()] == ["r.big"]
    assert sweep.store.jobs_of("pretended") == {}


def test_the_recipe_may_change_while_it_is_swept(host):
    executor = Pretended(host)
    sweep = Sweep(host, executor)
    Path("r.toml").write_text("nonsense")
    assert len(sweep.run()) == 3


def test_a_table_that_takes_the_place_of_another_is_refused(host):
    text = STAGES + "[stage.small.train]\nclip = 0.5\n[sweep]\n"
    text += '"stage.small.train" = [{lr = 1.0, steps = 2}]\n'
    with pytest.raises(UsageError, match="cannot be swept; vary its keys one by one"):
        Sweep(host, Pretended(host), text).run()


def test_the_record_names_each_point_and_its_run(host):
    text = STAGES + SWEEP + 'controls = ["no-teacher"]\n'
    sweep = Sweep(host, Pretended(host), text)
    sweep.run()
    sweep.store.record("r.toml", [*sweep.coordinator.tasks.values()])
    found = json.loads(Path("runs/sweep.json").read_text())
    assert found["recipe"] == "r.toml" and len(found["points"]) == 4
    one, control = found["points"][0], found["points"][1]
    assert one["label"] == "stage.small.seed=0" and one["seed"] == 0
    assert one["sets"] == {"stage.small.seed": 0} == control["sets"]
    assert (one["control"], control["control"]) == (None, "no-teacher")
    assert all((Path("runs") / each["run"] / "final").is_dir() for each in found["points"])
    other = Sweep(host, Pretended(host), STAGES + SWEEP.replace("[0, 1]", "[0, 5]"))
    other.run()
    other.store.record("r.toml", [*other.coordinator.tasks.values()])
    seeds = [each["seed"] for each in json.loads(Path("runs/sweep.json").read_text())["points"]]
    assert sorted(seeds) == [0, 0, 1, 1, 5]
    assert {each["twin"] for each in found["points"]} == {None}


def test_a_run_of_two_sweeps_is_a_point_of_both(host):
    for text in (SWEEP, '\n[sweep]\n"stage.small.train.lr" = [1e-2, 1e-3]\n'):
        sweep = Sweep(host, Pretended(host), STAGES + text)
        sweep.run()
        for _ in range(2):  # each once, however often the command is typed
            sweep.store.record("r.toml", [*sweep.coordinator.tasks.values()])
    found = json.loads(Path("runs/sweep.json").read_text())["points"]
    labels = [each["label"] for each in found]
    assert sorted(labels) == [
        "stage.small.seed=0",
        "stage.small.seed=1",
        "stage.small.train.lr=0.001",
        "stage.small.train.lr=0.01",
    ]
    assert len({each["run"] for each in found}) == 3


@pytest.mark.parametrize("text", ['{"points": [{"run": ', "[]", "\x00"])
def test_a_damaged_record_is_kept_and_said(host, text, caplog):
    sweep = Sweep(host, Pretended(host), STAGES + SWEEP)
    sweep.run()
    Path("runs/sweep.json").write_text(text)
    sweep.store.record("r.toml", [*sweep.coordinator.tasks.values()])
    assert len(json.loads(Path("runs/sweep.json").read_text())["points"]) == 2
    assert Path("runs/sweep.json.damaged").read_text() == text
    assert "runs/sweep.json was damaged, and is now sweep.json.damaged" in caplog.text


def test_a_control_that_waits_is_given_what_it_measures(host):
    executor = Pretended(host)
    text = STAGES + SWEEP.replace("[0, 1]", "[0]") + 'controls = ["more-steps"]\n'

    def start(job):
        if "kdcore.cli.control" in job.command:
            task = json.loads(Path(job.command[-1]).read_text())
            started.append(task)
            made = read_recipe(task["recipe"], host, sets=["stage.small.train.steps=9"]).text
            Path(task["made"]).write_text(made)
        return Pretended.start(executor, job)

    executor.start, started = start, []
    executor.folder_of = lambda job: _of_control(executor, job, started)
    sweep = Sweep(host, executor, text)
    names = sweep.run()
    assert len(names) == 4 and "more-steps-of-" in names[-1]
    (task,) = started
    assert task["control"] == "more-steps" and task["stage"] == "small"
    assert Path(task["twin"], "final").is_dir() and Path(task["plain"], "final").is_dir()
    sweep.store.record("r.toml", [*sweep.coordinator.tasks.values()])
    last = json.loads(Path("runs/sweep.json").read_text())["points"][-1]
    assert last["control"] == "more-steps" and Path("runs", last["run"], "final").is_dir()
    assert last["twin"] == Path(task["twin"]).name
    assert Sweep(host, Pretended(host), text).run() == []


def _of_control(executor, job, started):
    if "kdcore.cli.control" not in job.command:
        return Pretended.folder_of(executor, job)
    recipe = read_recipe(started[0]["made"], executor.host)
    return Path("runs") / f"{recipe.run_name('small')}-{recipe.identity('small')}"
