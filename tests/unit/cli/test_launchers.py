"""What launchers say in the environment: followed, or refused in a sentence."""

import pytest
import torch

from kdcore import UsageError
from kdcore.cli import launch
from kdcore.cli.launch import join
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
    return {"RANK": "0", "WORLD_SIZE": f"{processes}", "LOCAL_WORLD_SIZE": f"{here or processes}"}


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
