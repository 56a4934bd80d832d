"""CPU seconds of stages: as `kdcore plan` predicts and measures them, and as the runs took them.

    python benchmarks/speed/hours.py --results               the twins, at most 60 steps each
    python benchmarks/speed/hours.py cpu/rho_qwen --steps 0  one of them, whole

Each stage is planned, measured and run in this process. What a run took is `cpu_seconds` of the
last line of its metrics: steps, evaluations and checkpoints, without start-up. Stores of teachers
are empty before each run. Targets: 10 % for what was measured, 25 % for what was predicted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from kdcore.analysis.hours import measured, predicted
from kdcore.analysis.plan import plans_of
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe
from kdcore.runs.runner import RunRequest, run_all

RESULTS = Path(__file__).resolve().parents[1] / "results"
RECIPES = ["quickstart", "quickstart_rho", "cpu/rho_qwen", "cpu/qwen_kl_sft", "cpu/babyllama"]
HEAD = "| stage | predicted | measured | taken | predicted / taken | measured / taken |"


@dataclass(frozen=True)
class Row:
    """A stage's CPU seconds; `measured` is None where that failed."""

    stage: str
    predicted: float
    measured: float | None
    taken: float

    def __str__(self) -> str:
        found = "" if self.measured is None else f"{self.measured:.1f}"
        share = "" if self.measured is None else f"{self.measured / self.taken:.2f}"
        rest = f"{self.taken:.1f} | {self.predicted / self.taken:.2f} | {share}"
        return f"| {self.stage} | {self.predicted:.1f} | {found} | {rest} |"


def rows(name: str, steps: int, host: PluginManager, out: Path) -> Iterator[Row]:
    """One for each stage of a recipe, in order."""
    sets = _shortened(name, steps, host)
    recipe = read_recipe(name, host, sets=sets)
    for plan in plans_of(recipe):
        guess = predicted(plan)
        found = measured(recipe, plan, host, out, guess)
        assert guess is not None and found is not None, plan.unknown
        shutil.rmtree(out / "caches", ignore_errors=True)
        folders = run_all(RunRequest(name, out, sets, stage=plan.stage.name), host)
        last = (folders[-1] / "metrics.jsonl").read_text().splitlines()[-1]
        label = f"{name} {plan.stage.name}"
        yield Row(label, guess.seconds, found.cpu_seconds, json.loads(last)["cpu_seconds"])


def _shortened(name: str, steps: int, host: PluginManager) -> tuple[str, ...]:
    """At most so many steps in each stage, with an evaluation in the middle and at the end."""
    if not steps:
        return ()
    tables = [f"stage.{each.name}.train" for each in read_recipe(name, host).stages]
    about = (f"steps={steps}", f"eval_every={steps // 2}", f"save_every={steps}")
    return tuple(f"{table}.{each}" for table in tables for each in about)


def summary(every: list[Row]) -> str:
    """How many met the targets."""
    known = [row.measured / row.taken for row in every if row.measured is not None]
    near = sum(abs(ratio - 1) <= 0.10 for ratio in known)
    guessed = sum(abs(row.predicted / row.taken - 1) <= 0.25 for row in every)
    return (
        f"Measured within 10 %: {near} of {len(known)}. "
        f"Predicted within 25 %: {guessed} of {len(every)}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--steps", type=int, default=60, help="0: as many as the recipe has")
    parser.add_argument("--results", action="store_true")
    asked = parser.parse_args()
    host = PluginManager(off=["panel"])
    every: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.recipes:
            for row in rows(name, asked.steps, host, Path(folder)):
                print(row, flush=True)
                every.append(row)
    print(summary(every))
    if asked.results:
        lines = [f"# CPU seconds of stages, {date.today()}", "", HEAD, "|---" * 6 + "|"]
        text = "\n".join([*lines, *map(str, every), "", summary(every), ""])
        (RESULTS / f"{date.today()}-hours.md").write_text(text)


if __name__ == "__main__":
    main()
