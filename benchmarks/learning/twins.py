"""Run the small twins of the big recipes whole, and compare what they give with what they gave.

    python benchmarks/learning/twins.py                           all of recipes/cpu, 3 seeds
    python benchmarks/learning/twins.py cpu/babyllama --seeds 0   one of them, once

The figures stand in expected.toml. Runs lie in --out and are taken up again. Exit code 1 where a
figure is outside its tolerance, where a run failed, or where nothing is expected of a recipe.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli

from kdcore.recipe.files import recipe_name, shipped_recipes

EXPECTED = Path(__file__).with_name("expected.toml")
_HEAD = ("recipe", "figure", "seeds", "mean", "expected", "")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What an evaluation measured of a stage, less the same of another stage."""

    recipe: str
    key: str
    expected: float
    tolerance: float
    stage: str = ""
    less: str | None = None
    at: str = "last"

    def name(self) -> str:
        of = f"{self.stage} " if self.stage else ""
        than = f", less {self.less}'s" if self.less else ""
        best = "lowest " if self.at == "best" else ""
        return f"{of}{best}{self.key}{than}"

    def value(self, out: Path) -> float:
        """Of the runs in a folder."""
        own = _measured(out, self.stage, self.key, self.at)
        return own - _measured(out, self.less, self.key, self.at) if self.less else own

    def is_met(self, mean: float) -> bool:
        return abs(mean - self.expected) <= self.tolerance


def twins() -> list[str]:
    """The names of the recipes in recipes/cpu."""
    names = map(recipe_name, shipped_recipes())
    return [name for name in names if name.startswith("cpu/")]


def figures() -> list[Figure]:
    return [Figure(**each) for each in tomli.loads(EXPECTED.read_text())["figure"]]


def run(recipe: str, seed: int, out: Path) -> None:
    """In a process of its own, on one core."""
    command = [sys.executable, "-m", "kdcore", "run", recipe, "--set", f"seed={seed}"]
    one_core = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--out", str(out), "-q", "-p", "no:panel"], env=one_core, check=True)


def compared(
    recipes: Sequence[str], seeds: Sequence[int], out: Path
) -> tuple[list[list[str]], int]:
    """A line of text for each figure, and how many are not as they should be."""
    lines, wrong = [], 0
    for recipe in recipes:
        ours = [figure for figure in figures() if figure.recipe == recipe]
        if not ours:
            lines.append([recipe, "nothing is expected of it", "", "", "", "MISSING"])
            wrong += 1
            continue
        places = {seed: out / recipe.replace("/", "-") / f"seed-{seed}" for seed in seeds}
        for seed, place in places.items():
            run(recipe, seed, place)
        for figure in ours:
            values = [figure.value(place) for place in places.values()]
            mean = sum(values) / len(values)
            wrong += not figure.is_met(mean)
            lines.append(_line(figure, values, mean))
    return lines, wrong


def _line(figure: Figure, values: Iterable[float], mean: float) -> list[str]:
    each = " ".join(f"{value:.3f}" for value in values)
    band = f"{figure.expected:.3f} +- {figure.tolerance:.3f}"
    verdict = "ok" if figure.is_met(mean) else "OUTSIDE"
    return [figure.recipe, figure.name(), each, f"{mean:.3f}", band, verdict]


def _measured(out: Path, stage: str | None, key: str, at: str) -> float:
    """Of the one run of a stage in a folder."""
    pattern = f"*.{stage}-*" if stage else "*-*"
    (metrics,) = out.glob(f"{pattern}/metrics.jsonl")
    lines = map(json.loads, metrics.read_text().splitlines())
    values = [float(line[key]) for line in lines if key in line]
    return min(values) if at == "best" else values[-1]


def _tell(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(_HEAD, *lines, strict=True)]
    for line in (_HEAD, *lines):
        print(
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("recipes", nargs="*", default=twins(), metavar="RECIPE")
    parser.add_argument("--seeds", default="0,1,2", help="0,1,2 by default")
    parser.add_argument("--out", type=Path, default=Path("runs/twins"))
    asked = parser.parse_args(arguments)
    lines, wrong = compared(
        asked.recipes, [int(seed) for seed in asked.seeds.split(",")], asked.out
    )
    _tell(lines)
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
