"""Kill a sharded run at random moments, and compare its end with a run that was not killed.

    python benchmarks/robustness/sharded_kills.py 30

One process of the run is killed (SIGKILL) after a random time, so that the others notice; the next
start has 1, 2 or 4 processes. Then the run may end, and its weights are compared.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file

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


def start(folder: Path, processes: int) -> subprocess.Popen[bytes]:
    """`kdcore run` of the recipe, in a group of its own."""
    own = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = ["kdcore", "run", "kills.toml", "--processes", str(processes)]
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=os.environ | own,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def workers(parent: int) -> list[int]:
    """The processes that a launcher started."""
    found = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True)
    return [int(each) for each in found.stdout.split()]


def newest(folder: Path) -> int:
    """The step of the newest checkpoint."""
    steps = (int(each.name[5:]) for each in folder.glob("runs/*/checkpoints/step-*"))
    return max(steps, default=0)


def kill_one(folder: Path, rng: random.Random) -> str:
    """Start, wait, kill a process; how far the run was."""
    processes, began = rng.choice([2, 2, 4]), newest(folder)
    started = start(folder, processes)
    while newest(folder) == began and started.poll() is None:
        time.sleep(0.05)
    time.sleep(rng.uniform(0, 0.6))
    children = workers(started.pid)
    if children:
        os.kill(rng.choice(children), signal.SIGKILL)
    code = started.wait()
    return f"{processes} processes, from step {began}, killed after {newest(folder)}: code {code}"


def ended(folder: Path, processes: int) -> dict:
    """The final weights."""
    (folder / "kills.toml").write_text(RECIPE)
    assert start(folder, processes).wait() == 0
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
