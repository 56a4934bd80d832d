"""What `kdcore plan` says a stage takes of memory, compared with what a process took that ran it.

    python benchmarks/speed/planned.py                        the small twins and the quickstart
    python benchmarks/speed/planned.py cpu/babyllama          one of them

Each stage runs for a few steps, with an evaluation and a checkpoint, in a process of its own; the
largest resident set is the system's count. The target is 20 %.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

KDCORE = [sys.executable, "-m", "kdcore"]
RECIPES = [
    "quickstart",
    "cpu/rho_qwen",
    "cpu/qwen_kl_sft",
    "cpu/tinystories_llama",
    "cpu/babyllama",
    "quickstart_onpolicy",
    "cpu/seqkd_qwen",
    "cpu/distillm2_qwen",
]
FEW = ["steps=12", "eval_every=12", "save_every=6", "eval_rows=64"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def planned(recipe: str) -> dict[str, float]:
    """By stage, the bytes at its fullest."""
    command = [*KDCORE, "plan", recipe]
    done = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True)
    found, stage = {}, ""
    for line in done.stdout.splitlines():
        if line and not line.startswith(" "):
            stage = line.split()[0].partition(".")[2]
        elif memory := re.match(r"\s+at its fullest.*?([\d,.]+) (MiB|GiB)", line):
            found[stage] = (
                float(memory[1].replace(",", "")) * {"MiB": 2**20, "GiB": 2**30}[memory[2]]
            )
    return found


def taken(recipe: str, stage: str, few: list[str], runs: Path) -> int:
    """Bytes of the largest resident set of a process that runs the stage, and no other."""
    alone = ["--stage", stage] if stage else []
    command = [*KDCORE, "run", recipe, *alone, *few, "--out", str(runs), "-q"]
    child = os.posix_spawn(sys.executable, command, ENVIRONMENT)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{' '.join(command[2:])} failed")
    return usage.ru_maxrss * 1024


def few_steps(stages: Iterable[str]) -> list[str]:
    """In all stages at once, so that one finds those that it needs finished."""
    tables = [f"stage.{stage}.train" if stage else "train" for stage in stages]
    return [word for table in tables for key in FEW for word in ("--set", f"{table}.{key}")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    asked = parser.parse_args()
    print("| stage | planned, MiB | taken, MiB | taken of planned |\n|---|---|---|---|", flush=True)
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        for recipe in asked.recipes:
            plans = planned(recipe)
            for stage, plan in plans.items():
                most = taken(recipe, stage, few_steps(plans), Path(name))
                ratios.append(most / plan)
                said = f"{plan / 2**20:,.0f} | {most / 2**20:,.0f} | {ratios[-1]:.2f}"
                print(f"| {recipe} {stage} | {said} |", flush=True)
    worst = max(ratios, key=lambda ratio: abs(ratio - 1))
    print(f"\nfarthest from what was planned (at most 0.20): {abs(worst - 1):.2f}")


if __name__ == "__main__":
    main()
