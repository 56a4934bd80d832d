"""A sweep in the queue of a real SLURM: dependencies, a killed coordinator, a signal, a requeue."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_slurm
from sweeping import STAGES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(tiny_slurm.why_not()), reason=tiny_slurm.why_not()),
]
LIMIT = 240.0  # seconds for what takes a few


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tiny_slurm.started(tmp_path / "slurm") as environment:
        yield {**environment, "OMP_NUM_THREADS": "1"}


def begin(environment, *words):
    command = [sys.executable, "-m", "kdcore", "sweep", "r.toml", "--on", "slurm", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def asked(environment, *command):
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def until(found):
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.2)
    raise AssertionError("it did not happen")


def handles():
    return json.loads(Path("runs/.sweep/r/jobs.json").read_text())


def test_a_sweep_outlives_its_command_and_a_run_its_job(cluster):
    longer = "[stage.big.train]\nsteps = 400\nlog_every = 50\neval_every = 200\nsave_every = 20"
    text = STAGES.replace("[stage.big]", longer)
    Path("r.toml").write_text(text + '[sweep]\n"stage.small.seed" = [0, 1]\n')
    first = begin(cluster, "-p", "no:panel")
    (folder,) = until(lambda: list(Path("runs").glob("r.big-*/checkpoints/step-*/../..")))[:1]
    before = handles()
    assert len(before) == 3  # those that wait are submitted too
    first.kill()
    first.communicate()
    (job,) = (each for key, each in before.items() if key.endswith(folder.resolve().name[-8:]))
    asked(cluster, "scancel", "--signal=USR1", job)
    until(lambda: "Restarts=1" in asked(cluster, "scontrol", "show", "job", job))
    log = next(Path("runs/.sweep/r").glob("r.big-*.log"))
    until(lambda: "a checkpoint is written" in log.read_text())
    asked(cluster, "scontrol", "update", f"JobId={job}", "StartTime=now")
    second = begin(cluster, "-p", "no:panel")
    out, err = second.communicate(timeout=2 * LIMIT)
    assert second.returncode == 0, err
    assert len(list(Path("runs").glob("*/final"))) == 3 and len(out.splitlines()) == 3
    assert re.search(r"continues after step \d+ of 400", log.read_text())


def test_slurms_own_sentence_and_cancel(cluster):
    Path("r.toml").write_text(
        STAGES.replace("steps = 4", "steps = 100000") + "[sweep]\nseed = [0]\n"
    )
    done = begin(cluster, "--slurm", "partition=nowhere")
    _, err = done.communicate(timeout=LIMIT)
    assert done.returncode == 1 and "invalid partition specified: nowhere" in err
    going = begin(cluster)
    until(lambda: list(Path("runs").glob("r.big-*/metrics.jsonl")))
    os.kill(going.pid, signal.SIGINT)
    _, err = going.communicate(timeout=LIMIT)
    assert going.returncode == 130 and "2 submitted jobs continue" in err
    ends = begin(cluster, "--cancel")
    _, err = ends.communicate(timeout=LIMIT)
    assert ends.returncode == 0 and "2 submitted jobs are cancelled" in err
    until(lambda: asked(cluster, "squeue", "-h") == "")
    assert handles() == {} and list(Path("runs").glob("r.big-*/checkpoints/step-*"))
