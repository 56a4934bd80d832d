"""Nodes on the loopback address: one `torchrun` each, in its own folder or a shared one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

TORCHRUN = Path(sys.executable).with_name("torchrun")
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
        agent = [TORCHRUN, "--nnodes", str(len(folders)), "--node-rank", str(rank)]
        agent += ["--nproc-per-node", str(count), "--master-addr", "127.0.0.1"]
        agent += ["--master-port", port, "-m", "kdcore", "run", "-p", "./harm.py", *arguments]
        home = {"HF_DATASETS_CACHE": str(folder / "datasets"), "OMP_NUM_THREADS": "1"}
        log = folder / f"node-{rank}.txt"
        with log.open("w") as said:
            child = subprocess.Popen(
                agent, cwd=folder, env=os.environ | home | environment, stderr=said
            )
        started.append((child, log))
    return [(child.wait(), log.read_text()) for child, log in started]
