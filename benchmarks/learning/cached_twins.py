"""Two of the small twins, their teachers live and out of a cache: a step's time, and the losses.

    python benchmarks/learning/cached_twins.py

The student of cpu/babyllama (an ensemble of two teachers) and that of cpu/qwen_kl_sft, whole, with
seed 0; then the same recipes with their teachers' 32 likeliest ids out of a cache, which the first
epoch fills. Each runs in a process of its own, one thread; CPU seconds are the median of a step in
the run's second half. Losses are those of the last evaluation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from kdcore import hookimpl

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "speed"))

from variants import in_turn  # noqa: E402

TWINS = ("babyllama", "qwen_kl_sft")
STARTS: list[float] = []
SCORES: dict[str, float] = {}


@hookimpl
def kdcore_run_start(run: Any) -> None:
    """This file is a plugin of the runs that it measures, and as such another module."""
    import cached_twins

    cached_twins.STARTS.clear()


@hookimpl
def kdcore_step_start(run: Any, step: int) -> None:
    """When each step begins."""
    import cached_twins

    if step > run.steps // 2:
        cached_twins.STARTS.append(time.process_time())


@hookimpl
def kdcore_run_end(run: Any, error: BaseException | None) -> None:
    """What the last evaluation measured."""
    import cached_twins

    cached_twins.SCORES.update({k: v for k, v in run.scores.items() if isinstance(v, float)})


def once(recipe: str, out: str) -> dict[str, float]:
    """The student's stage, and what it needs where that is not there yet."""
    import cached_twins
    import torch

    from kdcore.plugin.manager import PluginManager
    from kdcore.recipe.recipe import read_recipe
    from kdcore.runs.runner import RunRequest, run_recipe

    torch.set_num_threads(1)
    host = PluginManager(files=[__file__])
    run_recipe(
        read_recipe(recipe, host), host, RunRequest(out=Path(out), stage="student", fresh=True)
    )
    steps = [after - before for before, after in pairwise(cached_twins.STARTS)]
    return {"seconds": statistics.median(steps), **cached_twins.SCORES}


def tell(twin: str, out: str) -> None:
    live, cached = f"cpu/{twin}", str(HERE / "recipes" / f"{twin}_cached.toml")
    names = [f"{recipe}:{out}" for recipe in (live, cached)]
    found = in_turn(__file__, names, 1)
    scores = [key for key in found[names[0]] if key != "seconds"]
    print(f"\n| {twin} | CPU seconds a step | {' | '.join(scores)} |")
    print("|---" * (2 + len(scores)) + "|")
    for said, name in zip(("live", "cached"), names, strict=True):
        figures = " | ".join(f"{found[name][key]:.4f}" for key in scores)
        print(f"| {said} | {found[name]['seconds']:.4f} | {figures} |")
    ratio = found[names[1]]["seconds"] / found[names[0]]["seconds"]
    print(f"\na step with the cached teacher, of the live one's: {ratio:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.variant:
        recipe, _, out = asked.variant.rpartition(":")
        print(json.dumps(once(recipe, out)))
        return
    with tempfile.TemporaryDirectory() as out:
        for twin in TWINS:
            tell(twin, out)


if __name__ == "__main__":
    main()
