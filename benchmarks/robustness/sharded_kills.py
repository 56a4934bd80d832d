"""Kill a sharded run at random moments, and compare its end with a run that was not killed.

    python benchmarks/robustness/sharded_kills.py 30

One process of the run is killed (SIGKILL) at a random moment after a checkpoint; the others notice,
or are killed 10 seconds later. Each start has 2 or 4 processes. Then the run may end in one
process, and its weights are compared.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from kdcore.plugin.manager import PluginManager
from kdcore.runs.runner import RunRequest, run_all

RECIPE = """
name = "kills"
[tokenizer]
use = "bpe"
vocab_size = 300
[data]
use = "stories"
stories = 200
validation = 10
block = 64
[student.config]
model_type = "llama"
hidden_size = 64
intermediate_size = 96
num_hidden_layers = 2
num_attention_heads = 4
[train]
shard = "full"
steps = 400
batch = 8
micro_batch = 2
lr = 1e-3
precision = "fp32"
save_every = 5
eval_every = 400
eval_first = false
[[loss]]
use = "ce"
"""


def start(folder: Path, processes: int) -> list[int]:
    """Fork the processes of a run of the recipe: all is imported already."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    shared |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return [_fork(folder, shared | {"RANK": n, "LOCAL_RANK": n}) for n in range(processes)]


def _fork(folder: Path, names: Mapping[str, object]) -> int:
    if child := os.fork():
        return child
    os.chdir(folder)
    os.environ |= {name: str(value) for name, value in names.items()}
    log = os.open("log.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        torch.set_num_threads(1)
        run_all(RunRequest("kills.toml"), PluginManager(off=["panel"]))
        code = 0
    finally:
        os._exit(code)


def waited(children: Sequence[int], seconds: float) -> list[int]:
    """The exit codes. Who does not end in this time is killed too, as by a launcher."""
    until, codes = time.monotonic() + seconds, dict[int, int]()
    while len(codes) < len(children):
        for child in {*children} - {*codes}:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[child] for child in children]


def newest(folder: Path) -> int:
    """The step of the newest checkpoint."""
    steps = (int(each.name[5:]) for each in folder.glob("runs/*/checkpoints/step-*"))
    return max(steps, default=0)


def kill_one(folder: Path, rng: random.Random) -> str:
    """Start, wait, kill a process; how far the run was."""
    processes, began = rng.choice([2, 4]), newest(folder)
    children = start(folder, processes)
    while newest(folder) == began:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 0.6))
    os.kill(rng.choice(children), signal.SIGKILL)
    codes = waited(children, 10)
    return f"{processes} processes, from step {began}, killed after {newest(folder)}: {codes}"


def ended(folder: Path, processes: int) -> dict[str, torch.Tensor]:
    """The final weights."""
    (folder / "kills.toml").write_text(RECIPE)
    assert waited(start(folder, processes), 600) == [0] * processes
    (final,) = folder.glob("runs/*/final/model.safetensors")
    return load_file(final)


def main(kills: int) -> None:
    """Print each kill, and the largest difference of a weight."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        folder = Path(one)
        (folder / "kills.toml").write_text(RECIPE)
        for n in range(kills):
            print(n + 1, kill_one(folder, rng), flush=True)
        found, expected = ended(folder, 1), ended(Path(other), 1)
        apart = max(float((found[k] - expected[k]).abs().max()) for k in expected)
        print(f"{kills} kills; the largest difference of a weight: {apart:.2g}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
