"""Kill a sharded run at random moments, and compare its end with a run that was not killed.

    python benchmarks/robustness/sharded_kills.py 30

One process of the run is killed (SIGKILL) at a random moment after a checkpoint; the others notice,
or are killed 10 seconds later. Each start has 1, 2 or 4 processes and resumes from the newest
checkpoint. Then the run may end in one process. Its weights and losses are compared with those of
one process that was never interrupted; how far two and four processes come from these without an
interruption is printed next to it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

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
steps = 300
batch = 8
micro_batch = 2
lr = 1e-3
precision = "fp32"
save_every = 5
eval_every = 300
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
    processes, began = rng.choice([1, 2, 4]), newest(folder)
    children = start(folder, processes)
    while newest(folder) == began:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        assert ended is None, f"a process ended before it was killed: {(folder / 'log.txt')}"
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 0.6))
    os.kill(rng.choice(children), signal.SIGKILL)
    codes = waited(children, 10)
    return f"{processes} processes, from step {began}, killed after {newest(folder)}: {codes}"


class End(NamedTuple):
    """How a run ended."""

    weights: dict[str, torch.Tensor]
    losses: dict[int, float]  # by step


def ended(folder: Path, processes: int) -> End:
    """The final weights and the losses of the run in a folder, resumed or begun."""
    folder.mkdir(exist_ok=True)
    (folder / "kills.toml").write_text(RECIPE)
    codes = waited(start(folder, processes), 900)
    assert codes == [0] * processes, (folder / "log.txt").read_text()[-2000:]
    (run,) = folder.glob("runs/*")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    return End(load_file(run / "final" / "model.safetensors"), losses)


def apart(one: End, other: End) -> str:
    """The largest differences of two ends."""
    assert one.losses.keys() == other.losses.keys()
    weights = max(float((one.weights[k] - other.weights[k]).abs().max()) for k in one.weights)
    losses = max(abs(one.losses[step] - other.losses[step]) for step in one.losses)
    return f"weights {weights:.2g}, losses {losses:.2g} ({len(one.losses)} records)"


def main(kills: int) -> None:
    """Print each kill, and the largest differences."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made, "killed")
        folder.mkdir()
        (folder / "kills.toml").write_text(RECIPE)
        for n in range(kills):
            print(n + 1, kill_one(folder, rng), flush=True)
        found = ended(folder, 1)
        expected = ended(Path(made, "alone"), 1)
        print(f"{kills} kills, from one process: {apart(found, expected)}", flush=True)
        for processes in (2, 4):
            other = ended(Path(made, f"by-{processes}"), processes)
            print(f"{processes} processes, never killed: {apart(other, expected)}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
