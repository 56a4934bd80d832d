"""Nodes on the loopback address: one `torchrun` each, in its own folder or a shared one."""

import socket

from forked import Begun

TORCHRUN = "torch.distributed.run"  # what the command of this name is
HARM = """
import os, signal
from kdcore import hookimpl

@hookimpl
def kdcore_step_start(run, step):
    if f"{run.recipe.run_name} {step} {run.process}" == os.environ.get("HARM"):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_on(folders, processes, *arguments, **environment):
    """`kdcore run` by one agent in each folder: their exit codes, and what each wrote to stderr."""
    port = str(free_port())
    started = []
    for rank, (folder, count) in enumerate(zip(folders, processes, strict=True)):
        (folder / "harm.py").write_text(HARM)
        agent = ["--nnodes", str(len(folders)), "--node-rank", str(rank)]
        agent += ["--nproc-per-node", str(count), "--master-addr", "127.0.0.1"]
        agent += ["--master-port", port, "-m", "kdcore", "run", "-p", "./harm.py", *arguments]
        home = {"HF_DATASETS_CACHE": str(folder / "datasets"), "OMP_NUM_THREADS": "1"}
        started.append(Begun(TORCHRUN, *agent, folder=folder, **home, **environment))
    said = [child.communicate() for child in started]
    return [(child.returncode, err) for child, (_, err) in zip(started, said, strict=True)]
