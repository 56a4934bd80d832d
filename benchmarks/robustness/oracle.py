"""Recipes drawn at random, run by the engine and by the oracle of the tests: do they agree?

    python benchmarks/robustness/oracle.py 10000                 so many recipes, from seed 0 on
    python benchmarks/robustness/oracle.py 1 --seed 4711         one, with its recipe if it fails
    python benchmarks/robustness/oracle.py 10000 --minutes 25    as many as that takes

Every tenth runs in two processes. Each recipe runs whole, and again from a checkpoint of it.
"Equal" is every term of every step, what was kept, the validation loss and the weights at the end
to 1e-5, and the continued run's weights and metrics to the last bit. "Too close": rounding decides,
as two scores stand side by side at the border of what is kept, a number of a cached teacher between
two that half precision has, two probabilities where the slope of `tvd` jumps, or as float32 without
chunks is as far from float64. Exit code 1 where some differ.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2] / "tests" / "helpers"
CHUNK = 500  # after so many the caches of tokens are thrown away, and two processes start anew


def settle(folder: Path) -> None:
    """What the tests' libraries read when they are imported, and where recipes lie."""
    sys.path.insert(0, str(TESTS))
    os.environ |= {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "tokens"),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    import random_world
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    random_world.lay_out(folder)
    os.chdir(folder)


def verdicts(seeds: range, folder: Path) -> Iterator[tuple[int, str, str]]:
    """Of each seed: "equal", "too close" or "differs", and why."""
    import random_recipes
    import random_runs

    host = random_runs.make_host()
    two = [random_recipes.draw(seed, processes=2) for seed in seeds if seed % 10 == 9]
    by_two = _by_two(two, folder)
    for seed in seeds:
        case = random_recipes.draw(seed, processes=2 if seed % 10 == 9 else 1)
        try:
            folders = by_two[seed] if case.processes == 2 else random_runs.run(case, host)
            if isinstance(folders, str):
                raise RuntimeError(folders)
            found, why = random_runs.verdict(case, *folders), ""
        except Exception as error:
            found, why = "differs", f"{type(error).__name__}: {error}"
        yield seed, found, why
        shutil.rmtree(folder / "runs" / str(seed), ignore_errors=True)


def _by_two(cases: list[object], folder: Path) -> dict[int, object]:
    import random_processes

    return random_processes.run_by_two(cases, folder) if cases else {}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("count", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="the first one, 0 by default")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin none after that")
    asked = parser.parse_args(arguments)
    counts: Counter[str] = Counter()
    began, last = time.monotonic(), asked.seed + asked.count
    with tempfile.TemporaryDirectory(prefix="kdcore-oracle-") as name:
        folder = Path(name)
        settle(folder)
        for first in range(asked.seed, last, CHUNK):
            if time.monotonic() - began > 60 * asked.minutes:
                break
            for seed, found, why in verdicts(range(first, min(first + CHUNK, last)), folder):
                counts[found] += 1
                if why:
                    print(f"seed {seed} {why}", flush=True)
                    if asked.count == 1:
                        print((folder / f"random-{seed}.toml").read_text())
            shutil.rmtree(folder / "tokens", ignore_errors=True)
            said = ", ".join(f"{n} {found}" for found, n in counts.most_common())
            print(f"seeds {asked.seed} to {first + CHUNK - 1}: {said}", flush=True)
        os.chdir("/")
    return int(counts["differs"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
