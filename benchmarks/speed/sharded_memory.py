"""Peak resident memory of each process, for a whole and a sharded student of 100M parameters.

    python benchmarks/speed/sharded_memory.py

Two processes train two steps on a CPU with gloo. Counted is the peak above the process before the
student is made, of which the head (its weight and its gradient, in float32) is taken off. glibc
keeps freed blocks of up to 32 MB for itself by default, and gathered layers are that
large; so both modes run with a fixed threshold, above which freed blocks go back to the system.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RECIPE = """
name = "memory"
[tokenizer]
use = "bpe"
vocab_size = 300
[data]
use = "stories"
stories = 40
validation = 4
block = 32
[student.config]
model_type = "llama"
hidden_size = 640
intermediate_size = 1760
num_hidden_layers = 20
num_attention_heads = 10
[train]
shard = "SHARD"
steps = 2
batch = 4
micro_batch = 1
lr = 1e-4
precision = "fp32"
save_every = 2
eval_first = false
[[loss]]
use = "ce"
"""


def peak() -> int:
    """Bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident(peak_since: bool = False) -> int:
    """Bytes now, or their peak since `begin`."""
    key = "VmHWM" if peak_since else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def begin() -> int:
    """Forget the peak so far; the bytes now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return resident()


def child(folder: str) -> None:
    """Train; note the peak before the student is made, after the last step, and of `final/`."""
    from kdcore.plugin.manager import PluginManager
    from kdcore.runs import runner
    from kdcore.training import setup, trainer

    os.chdir(folder)
    seen: dict[str, int] = {}
    make, save = setup.make_student, trainer.Trainer.save

    def made(*arguments: Any, **named: Any) -> Any:
        seen["before"] = peak()
        student = make(*arguments, **named)
        seen["parameters"] = sum(each.numel() for each in student.parameters())
        seen["head"] = 2 * 4 * student.get_output_embeddings().weight.numel()
        return student

    def saved(running: Any) -> None:
        seen["trained"] = peak()
        save(running)
        seen["saved"] = peak()

    def finished(*arguments: Any) -> Any:
        seen["before final"] = begin()
        return finish(*arguments)

    setup.make_student, trainer.Trainer.save = made, saved
    finish, runner.finish_student = runner.finish_student, finished
    runner.run_all(runner.RunRequest("memory.toml"), PluginManager(off=["panel"]))
    seen["final"] = resident(peak_since=True)
    Path(f"memory-{os.environ['RANK']}.json").write_text(json.dumps(seen))


def measured(shard: str, port: int) -> list[dict[str, int]]:
    """What both processes saw."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "memory.toml").write_text(RECIPE.replace("SHARD", shard))
        own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        own |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        own |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        started = [
            subprocess.Popen(
                [sys.executable, __file__, folder],
                env=os.environ | own | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(2)
        ]
        assert [each.wait() for each in started] == [0, 0]
        return [json.loads(Path(folder, f"memory-{n}.json").read_text()) for n in range(2)]


def main() -> None:
    """Print the bytes above the process before the student, and their ratio."""
    above = {}
    for port, shard in enumerate(("none", "full"), 29611):
        for rank, seen in enumerate(measured(shard, port)):
            for when in ("trained", "saved"):
                taken = seen[when] - seen["before"] - seen["head"]
                above[shard, rank, when] = taken
                count = seen["parameters"] / 1e6
                print(
                    f"{shard} process {rank} {when}: {taken / 2**20:.0f} MB, {count:.0f}M weights"
                )
            more, weights = seen["final"] - seen["before final"], 4 * seen["parameters"]
            print(
                f"{shard} process {rank} final: {more / 2**20:.0f} MB more than before, "
                f"{more / weights:.2f} of the weights"
            )
    for rank in range(2):
        for when in ("trained", "saved"):
            ratio = above["full", rank, when] / above["none", rank, when]
            print(f"process {rank}, {when}: {ratio:.2f} of whole")


if __name__ == "__main__":
    child(sys.argv[1]) if len(sys.argv) > 1 else main()
