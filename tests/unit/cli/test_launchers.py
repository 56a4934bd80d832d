"""What launchers say in the environment: followed, or refused in a sentence."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdcore import UsageError
from kdcore.cli import launch
from kdcore.cli.launchers import join
from kdcore.errors import StartAgain


@pytest.fixture
def gpus(monkeypatch):
    def there_are(count):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    there_are(0)
    return there_are


def joined(processes=1, **environment):
    join(environment, processes)
    return environment


def torchrun(processes, here=None):
    sizes = {"WORLD_SIZE": f"{processes}", "LOCAL_WORLD_SIZE": f"{here or processes}"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    return {"RANK": "0", "LOCAL_RANK": "0", **sizes, **address}


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("ACCELERATE_USE_FSDP", "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
    ],
)
def test_models_in_shards_are_refused(gpus, variable, name):
    with pytest.raises(UsageError, match=rf"asks for {name} \({variable}\).* --processes N"):
        joined(**torchrun(2), **{variable: "true"})
    assert joined(**{variable: "false"}) == {variable: "false"}


@pytest.mark.parametrize("number", ["0", "1"])
def test_tasks_of_srun_that_do_not_know_each_other_are_refused(gpus, number):
    tasks = {"SLURM_PROCID": number, "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    with pytest.raises(UsageError, match=r"srun started several tasks.* torchrun"):
        joined(**tasks)
    joined(**tasks, **torchrun(2))


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_processes_of_mpirun_that_do_not_know_each_other_are_refused(gpus, variable):
    with pytest.raises(UsageError, match=r"mpirun started several processes.* torchrun"):
        joined(**{variable: "2"})
    joined(**{variable: "1"})
    joined(**{variable: "2"}, **torchrun(2))


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_what_a_launcher_left_out_is_named(gpus, name):
    there = torchrun(2)
    del there[name]
    with pytest.raises(UsageError, match=rf"WORLD_SIZE is 2, and {name} is not set.* set it, or"):
        joined(**there)
    alone = torchrun(1)
    del alone[name]
    assert joined(**alone) == alone


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_WORLD_SIZE"])
def test_what_is_no_number_is_named(gpus, name):
    with pytest.raises(UsageError, match=f"{name} must be a number, and is 'two'"):
        joined(**torchrun(2) | {name: "two"})


def test_two_numbers_of_processes_are_refused(gpus):
    with pytest.raises(UsageError, match=r"started 2 processes.* --processes 4: leave one"):
        joined(processes=4, **torchrun(2))
    with pytest.raises(UsageError, match=r"started 1 process \("):
        joined(processes=4, **torchrun(1))
    joined(processes=2, **torchrun(2))  # as our own launcher starts them


def test_a_compiler_of_the_launcher_is_refused(gpus):
    with pytest.raises(UsageError, match=r"torch.compile with inductor.* compile_trunk"):
        joined(**torchrun(2), ACCELERATE_DYNAMO_BACKEND="INDUCTOR")
    joined(**torchrun(2), ACCELERATE_DYNAMO_BACKEND="NO")


def test_the_recipe_s_precision_decides(gpus, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("kdcore"), "propagate", True)
    with caplog.at_level("INFO", "kdcore"):
        joined(**torchrun(2), ACCELERATE_MIXED_PRECISION="no")
        assert not caplog.messages
        joined(**torchrun(2), ACCELERATE_MIXED_PRECISION="bf16")
    assert caplog.messages == [
        "accelerate's mixed_precision = bf16 is not used: [train] precision decides"
    ]


def test_accelerate_starts_one_process_on_a_cpu_and_that_is_said(gpus, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("kdcore"), "propagate", True)
    there = {"ACCELERATE_DYNAMO_MODE": "default", "ACCELERATE_USE_CPU": "True"}
    with caplog.at_level("INFO", "kdcore"):
        joined(**there)
        joined(processes=2, **there)
    assert [each.partition(";")[0] for each in caplog.messages] == [
        "accelerate started one process"
    ]


def test_one_process_in_a_batch_script_or_a_step_is_fine(gpus):
    joined(SLURM_PROCID="0", SLURM_NTASKS="4")
    joined(SLURM_PROCID="0", SLURM_NTASKS="4", SLURM_STEP_NUM_TASKS="1")


@pytest.mark.parametrize("launched", [{"processes": 2}, torchrun(2), torchrun(4, here=2)])
def test_processes_without_a_gpu_know_each_other_on_the_cpu(gpus, launched):
    assert joined(**launched)["ACCELERATE_USE_CPU"] == "true"


def test_a_process_alone_is_left_alone(gpus):
    assert joined() == {}
    assert joined(**torchrun(1)) == torchrun(1)


@pytest.mark.parametrize("launched", [{"processes": 2}, torchrun(2), torchrun(4, here=2)])
def test_more_processes_than_gpus_are_refused(gpus, launched):
    gpus(1)
    with pytest.raises(UsageError, match=r"2 processes and 1 GPU here.* type --processes 1, or"):
        joined(**launched)
    assert joined(**launched, ACCELERATE_USE_CPU="true")["ACCELERATE_USE_CPU"] == "true"
    gpus(2)
    assert "ACCELERATE_USE_CPU" not in joined(**launched)


def test_the_command_says_so(gpus, monkeypatch):
    from typer.testing import CliRunner

    from kdcore.cli.main import app

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    done = CliRunner().invoke(app, ["run", "quickstart"])
    assert isinstance(done.exception, UsageError)


@pytest.mark.parametrize(
    ("cpu", "codes", "time"),
    [
        ("true", [StartAgain.exit_code, None], launch._TO_SAVE),  # the other may write a checkpoint
        ("true", [1, None], launch._TO_END),
        ("", [StartAgain.exit_code, None], launch._TO_END),  # the other waits for the one that left
    ],
)
def test_how_long_the_others_have(monkeypatch, cpu, codes, time):
    monkeypatch.setenv("ACCELERATE_USE_CPU", cpu)
    assert launch._time_to_end(codes) == time


FSDP = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config: {fsdp_version: 2, fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP}
mixed_precision: 'no'
num_machines: 1
num_processes: 2
"""


@pytest.mark.slow
def test_accelerate_s_own_launcher_with_fsdp_in_its_config_is_refused(tmp_path):
    (tmp_path / "fsdp.yaml").write_text(FSDP)
    launcher = Path(sys.executable).with_name("accelerate")
    asked = [launcher, "launch", "--config_file", "fsdp.yaml", "-m", "kdcore", "run", "quickstart"]
    done = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    # The launcher may end the second process before that has said it too.
    assert "the launcher asks for FSDP (ACCELERATE_USE_FSDP)" in done.stderr
    assert not (tmp_path / "runs").exists()
