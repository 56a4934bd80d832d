"""One command in several processes: by `--processes N`, or as another launcher started it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import MutableMapping, Sequence
from contextlib import ExitStack
from tempfile import TemporaryFile
from threading import Thread
from typing import IO

from kdcore.errors import Interrupted, ProcessLost, StartAgain, UsageError
from kdcore.training.signals import SIGNALS, known_as

_TO_END = 10.0  # seconds that processes have when another one has ended
_TO_SAVE = 600.0  # where one of them may write a checkpoint first
# A terminal's ^C is for us to pass on, else they get it twice.
_GROUP = 0 if os.name == "posix" else None
_POLLING = 0.02  # seconds; whose end was first is to be seen
_LAUNCHED, _YET = "KDCORE_LAUNCHED", "yet to begin"
_LOST = 76  # what a process of ours ends with where it ended because of another one
_SHARDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
_YES = {"1", "true", "t", "yes", "y", "on"}
_INSTEAD = (
    "type kdcore run RECIPE --processes N, or torchrun --nproc-per-node N -m kdcore run RECIPE"
)


def join(environment: MutableMapping[str, str], processes: int) -> None:
    """Check what a launcher says in the environment, and complete it where there is no GPU.

    `processes` is what the command itself asks for. Raises UsageError for what kdcore cannot do:
    models in shards, tasks of SLURM that do not know each other, more processes than GPUs.
    """
    for variable, name in _SHARDED.items():
        if environment.get(variable, "").lower() in _YES:
            raise UsageError(
                f"the launcher asks for {name} ({variable}), and kdcore trains whole models with "
                f"DDP; {_INSTEAD}"
            )
    if "WORLD_SIZE" in environment:
        here = environment.get("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"])
        if int(environment["WORLD_SIZE"]) > 1:
            _give_each_a_device(environment, int(here))
    elif _is_one_of_several_tasks(environment):
        raise UsageError(
            "srun started several tasks, and none knows of the others (WORLD_SIZE is not set); "
            f"start one task on each node, and there {_INSTEAD}"
        )
    elif processes > 1:
        _give_each_a_device(environment, processes)


def _is_one_of_several_tasks(environment: MutableMapping[str, str]) -> bool:
    # A batch script is task 0 too, and has the job's SLURM_NTASKS, but is no step of srun.
    tasks, number = (environment.get(f"SLURM_{x}", "0") for x in ("STEP_NUM_TASKS", "PROCID"))
    return int(tasks) > 1 or int(number) > 0


def _give_each_a_device(environment: MutableMapping[str, str], processes: int) -> None:
    """All on the CPU where there is no GPU."""
    import torch

    gpus = torch.cuda.device_count()
    if environment.get("ACCELERATE_USE_CPU", "").lower() in _YES:
        return
    if not gpus:
        environment["ACCELERATE_USE_CPU"] = "true"
    elif gpus < processes:
        raise UsageError(
            f"there are {processes} processes and {gpus} GPU{'s' * (gpus > 1)} here, and each "
            f"process takes one; type --processes {gpus}, or ACCELERATE_USE_CPU=true before the "
            "command for the CPU"
        )


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `python -m kdcore ARGUMENTS` in N processes; the first failure ends all of them.

    The first process speaks for all; what another one said is shown where it failed otherwise.
    Where they ask for it, all start again. Returns the exit code of the first that failed, or 0.
    """
    while (code := _launch(arguments, processes)) == StartAgain.exit_code:
        arguments = [each for each in arguments if each != "--fresh"]  # it goes on with its folder
    return code


def _launch(arguments: Sequence[str], processes: int) -> int:
    port = str(_free_port())
    with ExitStack() as stack:
        said = [stack.enter_context(TemporaryFile("w+")) for _ in range(processes)]
        children = [
            subprocess.Popen(
                [sys.executable, "-P", "-m", "kdcore", *arguments],
                env=_environment(rank, processes, port),
                stdin=subprocess.PIPE,  # which ends with this process, and so do they
                stderr=said[rank] if rank else None,
                process_group=_GROUP,
            )
            for rank in range(processes)
        ]
        failed = _wait(children)
        return (
            0 if failed is None else _code([child.returncode for child in children], failed, said)
        )


def _code(codes: Sequence[int], failed: int, said: Sequence[IO[str]]) -> int:
    """Of processes of which one failed first; tells what others than process 0 have said."""
    again = [rank for rank, code in enumerate(codes) if code == StartAgain.exit_code]
    rank = again[0] if again else failed
    code = codes[rank]
    if code == _LOST:
        return ProcessLost.exit_code
    if code < 0 or code != codes[0]:
        _tell(rank, code, said[rank])
    return code if code > 0 else Interrupted("", known_as(-code)).exit_code


def _tell(rank: int, code: int, said: IO[str]) -> None:
    """What a process said that does not speak for all, and why it said nothing."""
    killed = (
        ": it was killed, as the system does where its memory runs out. The same command "
        "continues from the last checkpoint"
    )
    said.seek(0)
    print(f"process {rank} ended with {code}{killed if code == -9 else ''}", file=sys.stderr)
    print(said.read(), file=sys.stderr)


def _environment(rank: int, processes: int, port: str) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // processes)
    found = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        _LAUNCHED: _YET,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return {**os.environ, **found}


def end_with_launcher() -> None:
    """In a process of `launch`: end as by SIGTERM, with a checkpoint, when the launcher is gone."""
    if os.environ.get(_LAUNCHED) == _YET:
        os.environ[_LAUNCHED] = "begun"  # what it starts itself has another launcher, or none
        Thread(target=_wait_for_end, daemon=True).start()


def code_of_lost() -> int:
    """What a process ends with where another one is lost: our launcher asks whose end was first."""
    return _LOST if os.environ.get(_LAUNCHED) else ProcessLost.exit_code


def _wait_for_end() -> None:
    while os.read(0, 1 << 10):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _passed_on() -> list[signal.Signals]:
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """The number of the child that failed first; None where all end well."""

    def pass_on(number: int, frame: object) -> None:
        for child in children:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _passed_on()}
    try:
        while True:
            codes = [child.poll() for child in children]
            failed = [rank for rank, code in enumerate(codes) if code]
            if failed:
                _end(children, _time_to_end(codes))
                return min(failed, key=lambda rank: codes[rank] == _LOST)
            if all(code == 0 for code in codes):
                return None
            time.sleep(_POLLING)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _time_to_end(codes: Sequence[int | None]) -> float:
    """Seconds for the others, when these have ended."""
    # A GPU's process does not hear that another one is gone, and can save nothing while it waits.
    hears = os.environ.get("ACCELERATE_USE_CPU", "").lower() in _YES
    return _TO_SAVE if StartAgain.exit_code in codes and hears else _TO_END


def _end(children: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Give the others some time to end by themselves, then end them."""
    for child in children:
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.terminate()
    for child in children:
        try:
            child.wait(_TO_END)
        except subprocess.TimeoutExpired:
            child.kill()
