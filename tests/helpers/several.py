"""Several processes in one test, which find each other through gloo.

They are forks of a server process that has only imported the libraries. That costs a fraction of a
second, and does not depend on what other tests did: a fork of a process whose libraries have used
threads may crash.
"""

import faulthandler
import multiprocessing
import os
import pickle
import socket
import sys
import traceback
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryDirectory

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("accelerate", "datasets", "peft", "torch.distributed.tensor"),
        *("transformers.models.llama.modeling_llama", "transformers.trainer_utils"),
        *("kdcore.cli.main", "kdcore.runs.runner"),
    ]
)


def several(processes, work, *arguments):
    """What `work(rank, *arguments)` returns in each process, by rank. Its errors are raised.

    `work` is a function of a module, as the processes import it.
    """
    with TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        files = [Path(folder) / str(rank) for rank in range(processes)]
        here = os.getcwd(), dict(os.environ)
        children = [
            FORKS.Process(
                target=_run, args=(here, rank, processes, port, files[rank], work, arguments)
            )
            for rank in range(processes)
        ]
        for child in children:
            child.start()
        codes = _codes(children)
        found = [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]
    failed = [each for each in found if isinstance(each, _Failed)]
    assert not failed, "\n".join([*(each.said for each in failed), f"exit codes {codes}"])
    assert codes == [0] * processes, codes
    return found


class _Failed:
    def __init__(self, said):
        self.said = said


def _codes(children):
    """Exit codes by rank. Where one fails, the others, which would wait for it, are killed."""
    running = {child.sentinel: child for child in children}
    while running:
        for sentinel in wait(list(running)):
            child = running.pop(sentinel)
            child.join()
            for other in running.values() if child.exitcode else ():
                other.kill()
    return [child.exitcode for child in children]


def _run(here, rank, processes, port, file, work, arguments):
    folder, environment = here
    os.chdir(folder)
    os.environ.clear()
    os.environ |= environment
    found, code = _joined(rank, processes, port, work, arguments)
    file.write_bytes(pickle.dumps(found))
    sys.stderr.flush()
    os._exit(code)


_LONGEST = 280  # seconds; processes that wait for each other in vain show where, and end


def _joined(rank, processes, port, work, arguments):
    import torch
    from accelerate import PartialState

    faulthandler.dump_traceback_later(_LONGEST, exit=True, file=sys.__stderr__)
    torch.set_num_threads(1)
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ |= {name: str(value) for name, value in own.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"ACCELERATE_USE_CPU": "true"}
    PartialState._reset_state()
    try:
        found = work(rank, *arguments)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
    except BaseException:
        return _Failed(f"process {rank}: {traceback.format_exc()}"), 1
    return found, 0
