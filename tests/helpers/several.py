"""Several processes in one test: forks of it, which find each other through gloo.

A fork has imported everything already, so that it costs a fraction of a second.
"""

import faulthandler
import os
import pickle
import selectors
import signal
import socket
import sys
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory


def several(processes, work, *arguments):
    """What `work(rank, *arguments)` returns in each process, by rank. Its errors are raised."""
    with TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        files = [Path(folder) / str(rank) for rank in range(processes)]
        children = [
            _fork(rank, processes, port, files[rank], work, arguments) for rank in range(processes)
        ]
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
    codes = [None] * len(children)
    with selectors.DefaultSelector() as running:
        for rank, child in enumerate(children):
            running.register(os.pidfd_open(child), selectors.EVENT_READ, rank)
        while None in codes:
            for key, _ in running.select():
                rank = key.data
                codes[rank] = os.waitstatus_to_exitcode(os.waitpid(children[rank], 0)[1])
                running.unregister(key.fileobj)
                os.close(key.fileobj)
                for other, code in enumerate(codes) if codes[rank] else ():
                    if code is None:
                        os.kill(children[other], signal.SIGKILL)
    return codes


def _fork(rank, processes, port, file, work, arguments):
    if child := os.fork():
        return child
    code = 1
    try:
        found, code = _joined(rank, processes, port, work, arguments)
        file.write_bytes(pickle.dumps(found))
    finally:
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
