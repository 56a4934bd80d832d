"""Executors: processes on this machine, one for each GPU, and SLURM's commands as it has them."""

import json
import os
import signal
import stat
import subprocess
import sys

import pytest
from kdcore_executors import processes
from kdcore_executors.processes import Gpus, Local
from kdcore_executors.slurm import Slurm

from kdcore import Job, RunError, UsageError
from kdcore.testing import check_executor

pytestmark = pytest.mark.slow

ENV = "import os, json; print(json.dumps(dict(os.environ)), flush=True)"
WAIT = "import signal; signal.pause()"


def job(folder, code=ENV, **asked):
    return Job(
        asked.pop("name", "a"), [sys.executable, "-c", code], folder / "log", folder, **asked
    )


def ended(executor, *handles):
    while any(each.phase != "ended" for each in executor.states(handles).values()):
        pass
    return executor.states(handles)


def environment(folder):
    return json.loads((folder / "log").read_text())


def test_local_keeps_the_contract(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_executor(Local())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("workers", "cpus", "threads"), [(1, 3, "3"), (9999, 0, "1")])
def test_local_shares_the_cores(tmp_path, monkeypatch, workers, cpus, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    executor = Local(workers=workers)
    ended(executor, executor.start(job(tmp_path, cpus=cpus)))
    assert environment(tmp_path)["OMP_NUM_THREADS"] == threads


def test_local_starts_as_many_as_it_has_workers(tmp_path):
    executor = Local(workers=2)
    handles = [executor.start(job(tmp_path, WAIT)) for _ in range(3)]
    assert handles[2] is None and len({*handles}) == 3
    assert executor.states(["1x"]) == {}
    os.kill(int(handles[0]), signal.SIGKILL)
    state = ended(executor, handles[0])[handles[0]]
    assert state.code is None and "where its memory runs out" in state.reason
    again = executor.start(job(tmp_path, WAIT))
    executor.cancel([handles[1], again])
    assert executor.states([again])[again].phase == "ended"


def test_one_run_on_each_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_devices", lambda: ["3", "5", "7"])
    executor = Gpus()
    one = executor.start(job(tmp_path, WAIT))
    two = executor.start(job(tmp_path, ENV, gpus=2))
    assert executor.start(job(tmp_path, gpus=3)) is None
    ended(executor, two)
    assert environment(tmp_path)["CUDA_VISIBLE_DEVICES"] == "5,7"
    executor.cancel([one])
    with pytest.raises(UsageError, match="takes 4 GPUs, and 3 can be used here"):
        executor.start(job(tmp_path, gpus=4))


def test_without_gpus_there_is_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UsageError, match="takes 1 GPU, and none can be used here: type --on local"):
        Gpus().start(job(tmp_path))


@pytest.mark.parametrize(
    ("visible", "count", "found"), [("", 2, ["0", "1"]), ("4,6", 2, ["4", "6"]), ("4", 0, [])]
)
def test_gpus_are_those_that_this_process_may_use(monkeypatch, visible, count, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    assert processes._devices() == found


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Commands named like SLURM's that say what is in files here, and keep what they were asked."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "srun", "squeue", "scontrol", "scancel", "sacct"):
        path = programs / name
        path.write_text(
            f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/asked\n'
            f"[ -f {tmp_path}/{name}.err ] && {{ cat {tmp_path}/{name}.err >&2; exit 1; }}\n"
            f"cat {tmp_path}/{name}.out 2>/dev/null || exit 1\n"
        )
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    (tmp_path / "sbatch.out").write_text("Submitted batch job 17\n")
    (tmp_path / "squeue.out").write_text("")
    return tmp_path


def script(folder):
    """The newest batch file, its options by name."""
    (path,) = (folder / "slurm").glob("17_submission.sh")
    lines = path.read_text().splitlines()
    options = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")]
    return dict(each.partition("=")[::2] for each in options), lines


def test_slurm_is_asked_for_what_the_recipe_and_the_command_line_say(cluster):
    executor = Slurm(partition="gpu", time="4:00:00", gres="gpu:1", more={"nice": "5"})
    found = executor.start(job(cluster, name="fox.student-1a", after=("3", "4"), memory="2GB"))
    options, lines = script(cluster)
    assert found == "17"
    assert (
        options
        | {
            "partition": "gpu",
            "time": "4:00:00",
            "gres": "gpu:1",
            "nice": "5",
            "mem": "2GB",
            "dependency": "afterok:3:4",
            "job-name": "fox.student-1a",
            "signal": "USR2@120",
            "requeue": "",
        }
        == options
    )
    assert any("submitit.core._submit" in line for line in lines)


def test_resources_of_a_stage_take_precedence_and_no_limit_is_invented(cluster):
    Slurm(gres="gpu:1").start(job(cluster, gpus=4, hours=1.5, cpus=8))
    options, _ = script(cluster)
    assert (options["gres"], options["time"], options["cpus-per-task"]) == ("gpu:4", "90", "8")
    for path in (cluster / "slurm").glob("*submission*"):
        path.unlink()
    Slurm().start(job(cluster))
    assert "time" not in script(cluster)[0]


def test_slurms_own_sentence(cluster):
    (cluster / "sbatch.err").write_text(
        "sbatch: error: invalid partition specified: gpuu\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
    )
    with pytest.raises(
        RunError, match=r"SLURM refused a: invalid partition specified: gpuu; Batch"
    ):
        Slurm(partition="gpuu").start(job(cluster))


def test_a_full_queue_is_asked_again_later(cluster):
    executor = Slurm(max_jobs=1)
    assert executor.start(job(cluster)) == "17" and executor.start(job(cluster)) is None
    executor = Slurm()
    assert executor.start(job(cluster)) == "17"
    (cluster / "sbatch.err").write_text(
        "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Job violates accounting limit\n"
    )
    assert executor.start(job(cluster)) is None


@pytest.mark.parametrize(
    ("queue", "shown", "phase", "said"),
    [
        ("17 PENDING Priority", "", "queued", "SLURM: Priority"),
        ("17 RUNNING None", "", "running", ""),
        ("17 PENDING DependencyNeverSatisfied", "", "ended", "a run that it needs has failed"),
        ("", "JobState=OUT_OF_MEMORY ExitCode=0:125", "ended", "out of memory"),
        ("", "JobState=NODE_FAIL ExitCode=1:0", "ended", "its node failed"),
        ("", "JobState=FAILED ExitCode=2:0", "ended", ""),
    ],
)
def test_what_became_of_a_job(cluster, queue, shown, phase, said):
    (cluster / "squeue.out").write_text(f"16 RUNNING None\n{queue}\n")
    (cluster / "scontrol.out").write_text(shown)
    state = Slurm().states(["17"])["17"]
    assert state.phase == phase and said in state.reason
    assert state.code == (2 if "2:0" in shown else None)


def test_accounting_tells_of_jobs_that_are_long_gone(cluster):
    (cluster / "sacct.out").write_text("NODE_FAIL\n")
    assert "its node failed" in Slurm().states(["17"])["17"].reason


def test_a_controller_that_does_not_answer_ends_nothing(cluster):
    (cluster / "squeue.out").unlink()
    state = Slurm().states(["17"])["17"]
    assert (state.phase, state.reason) == ("queued", "SLURM does not answer now")


def test_cancel(cluster):
    (cluster / "scancel.out").write_text("")
    Slurm().cancel(["17", "18"])
    assert (cluster / "asked").read_text() == "scancel 17 18\n"


def test_jobs_that_scancel_leaves_are_named(cluster):
    (cluster / "scancel.err").write_text("scancel: error: Kill job error on job id 16")
    (cluster / "squeue.out").write_text("17 RUNNING None\n18 PENDING Priority\n")
    with pytest.raises(RunError, match=r"SLURM did not cancel 17, 18: .* or scancel 17 18"):
        Slurm().cancel(["16", "17", "18"])
    (cluster / "squeue.out").write_text("")
    Slurm().cancel(["16"])  # ended long ago, which scancel does not like
    (cluster / "squeue.out").unlink()
    with pytest.raises(RunError, match="SLURM did not cancel 16"):
        Slurm().cancel(["16"])


def test_without_slurm_there_is_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no SLURM here"):
        Slurm().start(job(tmp_path))


SAVES = """
import signal, sys
def save(*_):
    open(sys.argv[1], "a").write("saved ")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
open(sys.argv[1], "w").write("begun ")
signal.pause()
"""
NODE = """
import os, signal, sys, threading, time
from kdcore_executors.slurm import Command
command = Command([sys.executable, "-c", sys.argv[1], sys.argv[2]])
def requeue(number, frame):
    assert command.checkpoint().function.command == command.command
    print("requeued", flush=True)
    os._exit(0)
signal.signal(signal.SIGUSR2, requeue)  # as submitit does before it calls
def send():
    while not os.path.exists(sys.argv[2]) or not open(sys.argv[2]).read():
        time.sleep(0.01)
    os.kill(os.getpid(), int(sys.argv[3]))
threading.Thread(target=send, daemon=True).start()
command()
"""


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2", "SIGTERM"])
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_signal_saves_and_requeues_unless_it_is_a_cancel(cluster, name, cancelled):
    saved, state = cluster / "saved", "COMPLETING" if cancelled else "RUNNING"
    (cluster / "scontrol.out").write_text(f"JobId=17 JobState={state} Reason=None\n")
    words = [SAVES, str(saved), str(int(getattr(signal, name)))]
    done = subprocess.run([sys.executable, "-c", NODE, *words], capture_output=True, text=True)
    ends = cancelled and name == "SIGTERM"
    assert saved.read_text() == "begun saved "
    assert (done.returncode, done.stdout) == ((143, "") if ends else (0, "requeued\n")), done.stderr


def test_a_job_ends_with_the_code_of_its_run(tmp_path):
    code = f"from kdcore_executors.slurm import Command\nCommand([{sys.executable!r}, '-c', "
    code += "'raise SystemExit(3)'])()"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 3
