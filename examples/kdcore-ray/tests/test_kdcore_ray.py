"""Jobs are tasks with what they request; a real cluster survives the loss of a worker."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kdcore_ray import Ray
from replacement import Ray as Replacement

from kdcore import Job, UsageError

RECIPE = Path(__file__).parents[1] / "ray.toml"
PORT = 6391
ADDRESS = f"--address=127.0.0.1:{PORT}"
WAITS = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(143)))
open("begun", "w").close()
sys.stdin.read()  # until the worker is gone
"""


@pytest.fixture
def ray(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    made = Replacement()
    monkeypatch.setitem(sys.modules, "ray", made)
    return made


def job(code, folder, **requests):
    command = [sys.executable, "-c", code]
    return Job("job", command, folder / "logs" / "job.log", folder, **requests)


def started(executor, folder):
    """A job that waits for a signal, and has begun: it opens the other end of a pipe."""
    os.mkfifo("begun")
    handle = executor.start(job(WAITS, folder))
    Path("begun").read_bytes()
    return handle


def test_the_executor_keeps_the_contract(ray, kdcore_check):
    kdcore_check(Ray())
    assert ray.asked["address"] is None


def test_a_task_requests_what_the_run_does(ray, tmp_path):
    executor = Ray(address="10.0.0.1:6379")
    executor.start(job("", tmp_path))
    executor.start(job("", tmp_path, gpus=2, cpus=8, memory="32GB"))
    plain, large = (task.options for task in ray.tasks)
    assert plain == {"name": "job", "max_retries": 0, "num_cpus": 1}
    assert (large["num_gpus"], large["num_cpus"], large["memory"]) == (2, 8, 32 * 10**9)
    assert ray.asked["address"] == "10.0.0.1:6379"


def test_a_task_is_queued_until_it_starts_and_its_output_is_the_log(ray, tmp_path):
    executor = Ray()
    handle = executor.start(job("print('one')", tmp_path))
    assert executor.states([handle])[handle].phase in ("queued", "running")
    assert ray.get(ray.tasks[0]) == 0
    assert executor.states([handle, "another"]).keys() == {handle}
    assert (tmp_path / "logs" / "job.log").read_text() == "one\n"
    assert not executor._begun[handle].unlink()
    ray.wait = lambda tasks, timeout: ([], tasks)
    assert executor.states([handle])[handle].phase == "queued"


def test_a_cancelled_task_ends_its_run_by_sigterm(ray, tmp_path):
    executor = Ray()
    handle = started(executor, tmp_path)
    executor.cancel([handle])
    state = executor.states([handle])[handle]
    assert (state.phase, state.code) == ("ended", 143)
    assert (tmp_path / "logs" / "job.log").read_text() == "saved\n"


def test_a_killed_worker_and_a_killed_run_are_distinguished(ray, tmp_path):
    executor = Ray()
    handle = started(executor, tmp_path)
    os.kill(ray.tasks[0].process.pid, signal.SIGKILL)
    ray.tasks[0].process.join()
    assert executor.states([handle])[handle].reason == "its Ray worker was killed"
    ray.get = lambda task: -9
    assert executor.states([handle])[handle].reason == "signal 9 killed it"


def test_other_errors_of_ray_are_said_in_its_words(ray, tmp_path):
    executor = Ray()
    handle = executor.start(job("", tmp_path))
    ray.tasks[0].process.join()

    def get(task):
        raise ValueError("no such thing\nat all")

    ray.get = get
    assert executor.states([handle])[handle].reason == "Ray: no such thing"


def test_without_ray_and_without_a_cluster_a_sentence_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="--on ray needs Ray: pip install ray"):
        Ray().start(job("", tmp_path))
    monkeypatch.setitem(sys.modules, "ray", Replacement("Failed:\nnothing listens"))
    with pytest.raises(UsageError, match=r"no Ray cluster at h:1: nothing listens\. Type --on ray"):
        Ray(address="h:1").start(job("", tmp_path))


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Two raylets of one CPU; the address of the head."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    if os.environ.get("KDCORE_RAY_TEST") != "1":
        pytest.skip("two raylets take a minute or two: set KDCORE_RAY_TEST=1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # whatever tokens this machine has
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
    command += ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000"]
    nodes = []
    try:
        for place in (["--head", f"--port={PORT}", "--include-dashboard=false"], [ADDRESS]):
            nodes.append(subprocess.Popen([*command, *place], cwd=tmp_path))
            when(_listens)
        yield f"127.0.0.1:{PORT}"
    finally:
        for node in nodes:
            node.terminate()
            node.wait()


def _listens():
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", PORT)) == 0


def when(found, limit=300.0):
    """What `found` gives once it gives something: a run on another process's time."""
    until = time.monotonic() + limit
    while not (it := found()):
        assert time.monotonic() < until
        time.sleep(0.2)
    return it


def worker_of(name):
    """The process that runs a task of this name, once its run has trained."""
    titles = {each.parent: each.read_bytes() for each in Path("/proc").glob("[0-9]*/cmdline")}
    return next(
        (int(path.name) for path, each in titles.items() if f"ray::{name}" in each.decode()), 0
    )


@pytest.mark.ray
def test_a_sweep_on_two_nodes_survives_the_loss_of_a_worker(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "kdcore", "sweep", str(RECIPE), "--on", f"ray:{cluster}"]
    command += ["--set", "train.steps=1500", "--set", "train.save_every=1500"]
    with open("said.txt", "w") as said:
        sweep = subprocess.Popen(command, stdout=said, stderr=said)
        metrics = when(lambda: [*Path("runs").glob("ray.teacher-*/metrics.jsonl")])[0]
        when(lambda: '"step": 20' in metrics.read_text())
        os.kill(when(lambda: worker_of("ray.teacher")), signal.SIGKILL)
        assert sweep.wait() == 0, Path("said.txt").read_text()
    assert len([*Path("runs").glob("ray.student-*/final")]) == 2
    (log,) = Path("runs/.sweep/ray").glob("ray.teacher-*.log")
    assert re.search(r"continues after step \d+ of 1500", log.read_text())
    # Each node has one CPU, so that two runs at a time are on both nodes.
    said = [
        line.split()[-1] for line in Path("said.txt").read_text().splitlines() if "student" in line
    ]
    assert said[:4] == ["queued", "queued", "running", "running"]
