"""What launchers set in the environment: honoured, or refused in a sentence."""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping

from kdcore.errors import UsageError

_log = logging.getLogger("kdcore")

YES = {"1", "true", "t", "yes", "y", "on"}
_SHARDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
_ADDRESS = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_INSTEAD = (
    "type kdcore run RECIPE --processes N, or torchrun --nproc-per-node N -m kdcore run RECIPE"
)


def join(environment: MutableMapping[str, str], processes: int) -> None:
    """Check the launcher's environment variables, and complete them if there is no GPU.

    `processes` is the number that the command itself requests. Raises UsageError for what kdcore
    does not support: models sharded or compiled by the launcher, tasks of SLURM or MPI that do not
    know each other, incomplete variables, more processes than GPUs.
    """
    _refuse_settings(environment)
    if "WORLD_SIZE" in environment:
        world = _number(environment, "WORLD_SIZE")
        _check_world(environment, world, processes)
        if world > 1:
            _give_each_a_device(environment, _number(environment, "LOCAL_WORLD_SIZE", world))
    elif _is_one_of_several_tasks(environment):
        raise UsageError(
            "srun started several tasks, and none knows of the others (WORLD_SIZE is not set); "
            f"start one task on each node, and there {_INSTEAD}"
        )
    elif any(_number(environment, name, 1) > 1 for name in _MPI):
        raise UsageError(
            "mpirun started several processes, and none knows of the others (WORLD_SIZE is not "
            f"set); {_INSTEAD}"
        )
    elif processes > 1:
        _give_each_a_device(environment, processes)
    elif "ACCELERATE_DYNAMO_MODE" in environment:  # set by every `accelerate launch`
        _log.info(
            "accelerate started one process; on a CPU it starts no others, whatever "
            "--num_processes says: kdcore run RECIPE --processes N does"
        )


def _refuse_settings(environment: Mapping[str, str]) -> None:
    """What an accelerate config may ask for, and a recipe decides."""
    for variable, name in _SHARDED.items():
        if environment.get(variable, "").lower() in YES:
            raise UsageError(
                f"the launcher asks for {name} ({variable}), and only the recipe shards models, by "
                f'shard = "full" under [train]; {_INSTEAD}'
            )
    if (compiler := environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()) != "no":
        raise UsageError(
            f"the launcher asks for torch.compile with {compiler} (ACCELERATE_DYNAMO_BACKEND), and "
            "the recipe decides what is compiled: leave it out of accelerate's config, and see "
            "compile and compile_trunk under [train]"
        )
    if (precision := environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()) != "no":
        _log.info(
            "accelerate's mixed_precision = %s is not used: [train] precision decides", precision
        )


def _check_world(environment: Mapping[str, str], world: int, processes: int) -> None:
    """The variables must be complete, and agree with `--processes`."""
    missing = [name for name in _ADDRESS if name not in environment]
    if world > 1 and missing:
        raise UsageError(
            f"WORLD_SIZE is {world}, and {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set, without which the processes do not "
            f"find each other; set {'it' if len(missing) == 1 else 'them'}, or {_INSTEAD}"
        )
    if processes not in (1, world):
        raise UsageError(
            f"the launcher started {world} process{'es' * (world > 1)} (WORLD_SIZE), and the "
            f"command asks for --processes {processes}: leave one of them out"
        )


def _number(environment: Mapping[str, str], name: str, default: int = 1) -> int:
    value = environment.get(name, "")
    if not value:
        return default
    try:
        return int(value)
    except ValueError:
        raise UsageError(f"{name} must be a number, and is {value!r}") from None


def _is_one_of_several_tasks(environment: Mapping[str, str]) -> bool:
    # A batch script is also task 0 and has the job's SLURM_NTASKS, but is no srun step.
    tasks, number = (environment.get(f"SLURM_{x}", "0") for x in ("STEP_NUM_TASKS", "PROCID"))
    return int(tasks) > 1 or int(number) > 0


def _give_each_a_device(environment: MutableMapping[str, str], processes: int) -> None:
    """All on the CPU if there is no GPU."""
    import torch

    gpus = torch.cuda.device_count()
    if environment.get("ACCELERATE_USE_CPU", "").lower() in YES:
        return
    if not gpus:
        environment["ACCELERATE_USE_CPU"] = "true"
    elif gpus < processes:
        raise UsageError(
            f"there are {processes} processes and {gpus} GPU{'s' * (gpus > 1)} here, and each "
            f"process takes one; type --processes {gpus}, or ACCELERATE_USE_CPU=true before the "
            "command for the CPU"
        )
