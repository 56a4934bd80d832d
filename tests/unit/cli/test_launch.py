"""`kdcore run` in two processes: the same run as in one, interrupted and continued as in one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import forks
import pytest
import torch
from safetensors.torch import load_file

from kdcore.cli import launch

pytestmark = pytest.mark.slow

RECIPE = """
[student.config]
model_type = "llama"
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2

[tokenizer]
use = "bpe"
vocab_size = 270

[data]
use = "owls"
block = 32

[[loss]]
use = "ce"

[selection]
use = "hardest"
keep = 0.5

[train]
lr = 1e-2
steps = 6
batch = 5
micro_batch = 2
log_every = 2
save_every = 3
"""

PLUGIN = """
import os, signal
from types import SimpleNamespace
from kdcore import Data, Logger, component, hookimpl

ALONE = SimpleNamespace(num_processes=1)

@component
class Owls(Data):
    name = "owls"

    def texts(self, split):
        for many in range(40 if split == "train" else 8):
            yield f"The {'red' if many % 2 else 'old'} fox saw {many} owls near the river."

def tell_parent(number):
    # Until what the parent passes on has arrived here.
    noted = signal.getsignal(signal.SIGINT).__self__
    os.kill(os.getppid(), number)
    while not noted.agreed(ALONE):
        pass

@component
class Meddles(Logger):
    name = "meddles"

    @hookimpl
    def kdcore_step_start(self, run, step):
        when, who, deed = os.environ["MEDDLE"].split(" ", 2)
        if step == int(when) and run.process == int(who):
            exec(deed)

@hookimpl
def kdcore_data():
    return [Owls]

@hookimpl
def kdcore_loggers():
    return [Meddles]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("launch")
    (made / "plugin.py").write_text(PLUGIN)
    (made / "recipe.toml").write_text(RECIPE)
    return made


COMMAND = ("kdcore", "run", "recipe.toml", "-p", "./plugin.py")


def kdcore(folder, *arguments, meddle="0 0 "):
    """The command, all of whose processes are forks. `meddle`: at which step who does what."""
    words = (*COMMAND, "--log", "meddles", *arguments)
    return forks.run(*words, folder=folder, MEDDLE=meddle, OMP_NUM_THREADS="1")


def as_typed(folder, *arguments, meddle="0 0 "):
    """The same, each process of which is a Python that is started as a user starts it."""
    words = [sys.executable, "-m", *COMMAND, "--log", "meddles", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MEDDLE": meddle}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_process_that_starts_all_again_says_why(capfd, tmp_path):
    """Where the first one only hears that it is gone."""
    said = [(tmp_path / name).open("w+") for name in "ab"]
    said[1].write("out of memory after step 3")
    assert launch._code([76, 75], 0, said) == 75
    assert "process 1 ended with 75\nout of memory after step 3" in capfd.readouterr().err
    assert launch._code([76, 1], 1, said) == 1
    assert launch._code([76, 0], 0, said) == 1
    assert launch._code([1, -10], 1, said) == 143
    assert launch._code([2, 2], 0, said) == 2


def test_who_loses_another_is_not_the_cause_even_if_it_ends_first():
    assert launch._cause([0], [76, 130]) == 1
    assert launch._cause([1], [-15, 1]) == 1
    assert launch._cause([0, 1], [76, 3]) == 1
    assert launch._cause([0], [76, 0]) == 0


def run_of(folder, out):
    (found,) = [path for path in Path(folder, out).iterdir() if (path / "recipe.toml").exists()]
    return found


def weights(run):
    return load_file(run / "final" / "model.safetensors")


def records(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: line[k] for k in ("step", "tokens", "loss", "kept")} for line in lines if "lr" in line
    ]


@pytest.fixture(scope="module")
def alone(folder):
    done = kdcore(folder, "--out", "alone")
    assert done.returncode == 0, done.stderr
    return run_of(folder, "alone")


def assert_same_run(run, alone):
    theirs = weights(alone)
    for name, tensor in weights(run).items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-5)
    for one, other in zip(records(run), records(alone), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_two_processes_make_the_same_run(folder, alone):
    done = as_typed(folder, "--out", "two", "--processes", "2")
    assert done.returncode == 0, done.stderr
    assert_same_run(run_of(folder, "two"), alone)
    assert done.stderr.count("done after") == 1


def test_so_do_two_that_another_launcher_started(folder, alone):
    """As torchrun says who is who; without a GPU nobody says that they are on the CPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    there = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    there |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    children = [
        forks.Begun(
            *(*COMMAND, "--out", "torchrun"), folder=folder, RANK=rank, LOCAL_RANK=rank, **there
        )
        for rank in "01"
    ]
    said = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert_same_run(run_of(folder, "torchrun"), alone)


def test_an_interrupt_and_a_lost_terminal_leave_a_checkpoint(folder, alone):
    """Whichever process hears of them first. The same command goes on."""
    arguments = ("--out", "interrupted", "--processes", "2")
    for step, process, name, code in ((2, 0, "SIGINT", 130), (4, 1, "SIGHUP", 129)):
        meddle = f"{step} {process} tell_parent(signal.{name})"
        done = kdcore(folder, *arguments, meddle=meddle)
        assert done.returncode == code, done.stderr
        run = run_of(folder, "interrupted")
        assert not (run / "final").exists()
        assert (run / "checkpoints" / f"step-{step}").is_dir()
    assert kdcore(folder, *arguments).returncode == 0
    for one, other in zip(weights(run).values(), weights(alone).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_launcher_that_is_killed_ends_its_processes(folder):
    """They write a checkpoint first."""
    deed = "2 0 tell_parent(signal.SIGKILL)"
    done = kdcore(folder, "--out", "orphans", "--processes", "2", meddle=deed)
    assert done.returncode == -9
    run = run_of(folder, "orphans")
    assert (run / "checkpoints" / "step-2").is_dir(), done.stderr
    assert not (run / "final").exists()


@pytest.mark.parametrize("name, code", [("SIGUSR2", 143), ("SIGHUP", 129)])
def test_every_signal_leaves_a_checkpoint_of_a_single_process(folder, name, code):
    deed = f"3 0 os.kill(os.getpid(), signal.{name})"
    done = kdcore(folder, "--out", name, meddle=deed)
    assert done.returncode == code, done.stderr
    assert (run_of(folder, name) / "checkpoints" / "step-3").is_dir()


@pytest.mark.parametrize("streams", [(2,), (1,), (0, 1, 2)])
def test_closed_streams_harm_nothing(folder, streams):
    done = forks.run(*COMMAND, "--out", "closed", folder=folder, closed=streams)
    assert done.returncode == 0
    assert (run_of(folder, "closed") / "final").is_dir()


def test_streams_that_a_shell_closed_harm_nothing(folder):
    command = f"{sys.executable} -m kdcore check recipe.toml -p ./plugin.py 0<&- 1>&- 2>&-"
    assert subprocess.run(command, shell=True, cwd=folder).returncode == 0


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_others(folder, rank):
    deed = f"4 {rank} os.kill(os.getpid(), signal.SIGKILL)"
    done = kdcore(folder, "--out", f"dies-{rank}", "--processes", "2", meddle=deed)
    assert done.returncode == 137
    run = run_of(folder, f"dies-{rank}")
    assert not (run / "final").exists()
    assert (run / "checkpoints" / "step-3").is_dir()
    assert f"process {rank} ended with -9: it was killed" in done.stderr
    assert rank == 0 or "another process of the run has ended" in done.stderr
    assert "bug" not in done.stderr and not (run / "traceback.txt").exists()


def test_a_process_that_fails_says_why_and_the_others_that_it_did(folder):
    deed = "4 1 from kdcore import RunError; raise RunError('no more owls')"
    done = kdcore(folder, "--out", "fails", "--processes", "2", meddle=deed)
    assert done.returncode == 1
    assert "process 1 ended with 1" in done.stderr and "no more owls" in done.stderr
    assert "another process of the run has ended" in done.stderr


def test_an_error_of_the_recipe_is_printed_once(folder):
    done = kdcore(folder, "--out", "fault", "--processes", "2", "--set", "train.lr=fast")
    assert done.returncode == 2
    assert done.stderr.count("train.lr=fast") == 1, done.stderr


TOO_MUCH = """
import torch
def forward(*arguments, inner=run.language_model.states, error=torch.OutOfMemoryError, **options):
    if len(arguments[0].input_ids) > 1:
        raise error("too many rows")
    return inner(*arguments, **options)
run.language_model.states = forward
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_too_little_memory_in_one_process_halves_the_micro_batch_of_all(folder, alone, rank):
    """From a checkpoint of the step before on, at which none is due."""
    arguments = ("--out", f"memory-{rank}", "--processes", "2", "--fresh")
    done = kdcore(folder, *arguments, meddle=f"5 {rank} {TOO_MUCH}")
    assert done.returncode == 0, done.stderr
    run = run_of(folder, f"memory-{rank}")
    assert json.loads((run / "micro_batch.json").read_text())["micro_batch"] == 1
    assert "out of memory after step 4" in done.stderr
    assert "continues after step 4 of 6" in done.stderr
    assert_same_run(run, alone)
