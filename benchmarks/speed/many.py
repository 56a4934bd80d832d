"""What much of one kind costs: stages and numbers in a recipe, runs in a folder.

    python benchmarks/speed/many.py

`kdcore check` of recipes of 500 to 8,000 stages and of one with an array of 6 MB; `kdcore show`
over 2,500 and 10,000 runs of 24 lines of metrics, as a list and side by side. CPU seconds and MB of
each command; what the command takes with almost nothing to do stands first.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

BEGIN = "import sys; from kdcore.cli.main import main; sys.argv = ['kdcore', *sys.argv[1:]]; main()"
RECIPE = """\
seed = 0
[tokenizer]
use = "bpe"
vocab_size = 768
[data]
use = "stories"
stories = 60
block = 64
[student.config]
model_type = "llama"
hidden_size = 32
{more}
[[loss]]
use = "ce"
[train]
steps = 2
lr = 1e-3
"""
TAUGHT = """\
[stage.s{n}.teacher]
use = "hf"
model = "@s0"
[[stage.s{n}.loss]]
use = "kl"
"""


def with_stages(path: Path, count: int) -> Path:
    """A recipe whose first stage teaches all others."""
    others = "".join(TAUGHT.format(n=n) for n in range(1, count))
    path.write_text(RECIPE.format(more="") + "[stage.s0]\n" + others)
    return path


def with_array(path: Path) -> Path:
    """A recipe with an array of numbers of 6 MB."""
    numbers = ", ".join(map(str, range(780_000)))
    path.write_text(RECIPE.format(more=f"extra = [{numbers}]"))
    return path


def with_runs(folder: Path, count: int) -> Path:
    """Run folders that differ in their learning rate, five seeds of each."""
    for n in range(count):
        run = folder / f"many-{n:08x}"
        (run / "final").mkdir(parents=True)
        recipe = RECIPE.format(more="").replace("seed = 0", f"seed = {n % 5}")
        recipe = f'name = "many"\n{recipe}'.replace("1e-3", f"{1e-6 * (1 + n // 5):.6f}")
        for name in ("recipe.toml", "resolved.toml"):
            (run / name).write_text(recipe)
        (run / "metrics.jsonl").write_text("".join(_lines(n)))
    return folder


def _lines(n: int) -> list[str]:
    made = []
    for step in range(10, 210, 10):
        line = {"stage": "", "step": step, "tokens": 1000 * step, "elapsed": step / 10, "schema": 2}
        made.append({**line, "loss": 3 - step / 1000, "loss/ce": 3 - step / 1000, "lr": 1e-3})
        if step % 50 == 0:
            made.append({**line, "eval/nll": 2 + n % 7 / 10, "eval/bits_per_byte": 1.1})
    return [json.dumps(line) + "\n" for line in made]


def measured(*arguments: object) -> tuple[float, float]:
    """CPU seconds and MB of a command, in a process whose only child it is."""
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, memory = done.stdout.split()
    return float(seconds), float(memory)


def one(arguments: Sequence[str]) -> None:
    """Run one command and print what it took."""
    command = [sys.executable, "-c", BEGIN, *arguments]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2:])
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    print("| what | CPU seconds | MB |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in (1, 500, 2_000, 8_000):
            recipe = with_stages(folder / f"stages{count}.toml", count)
            _print(f"check, {count:,} stages", "check", recipe)
        _print("check, an array of 6 MB", "check", with_array(folder / "array.toml"))
        for count in (1, 2_500, 10_000):
            runs = with_runs(folder / f"runs{count}", count)
            _print(f"show, {count:,} runs", "show", "--out", runs)
            _print(f"show 'many-*', {count:,} runs", "show", "many-*", "--csv", "--out", runs)


def _print(said: str, *arguments: object) -> None:
    seconds, memory = measured(*arguments)
    print(f"| {said} | {seconds:.2f} | {memory:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
