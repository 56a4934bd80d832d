"""Cases drawn at random, run by two processes that are started once for all of them."""

import os
import socket
import traceback

import random_runs
import torch

PROCESSES = 2


def run_by_two(cases, folder):
    """Of each case, by its seed: the run and the continued one, or the error that ended it all."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_process, (port, folder, cases), nprocs=PROCESSES)
    return torch.load(folder / "two.pt", weights_only=False)


def _process(rank, port, folder, cases):
    os.chdir(folder)
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank}
    names |= {"WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
    from accelerate import PartialState

    state = PartialState(cpu=True)
    assert state.num_processes == PROCESSES
    host = random_runs.make_host()
    found = {}
    for case in cases:
        try:
            found[case.seed] = random_runs.run(
                case, host, state.wait_for_everyone, main=state.is_main_process
            )
        except Exception:
            # What one process met the other one waits for, so that nothing can follow.
            found[case.seed] = traceback.format_exc()
            break
    if state.is_main_process:
        torch.save(found, "two.pt")
    state.wait_for_everyone()
    torch.distributed.destroy_process_group()
