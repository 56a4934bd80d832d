"""The steps of docs/studies that are no verb: settings chosen by a comparison, gradient shares.

    kdcore compare RUN... --documents first --json | python benchmarks/learning/studies.py choose
    python benchmarks/learning/studies.py shares RUN...
    kdcore compare $(python benchmarks/learning/studies.py runs loss.kl.use=kl data.share=0.5)

`choose` reads the arms of a sweep over lr and weight, and writes the best of each divergence as
the [[sweep]] of further seeds; cross-entropy alone is `kl` with weight 0. `shares` writes the mean
share of the gradient that each divergence gives in the first and in the last measured step. `runs`
writes the folders of the points of a sweep that have these values, by runs/sweep.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

SEEDS = [0, 1, 2, 3, 4]
ALONE = "ce"


@dataclass(frozen=True)
class Setting:
    """A divergence with a learning rate and a weight, and what a comparison measured of it."""

    use: str
    lr: float
    weight: float
    mean: float

    @classmethod
    def of(cls, label: str, mean: float) -> Setting:
        """By an arm's label: "loss.kl.use=jsd train.lr=0.003 loss.kl.weight=5.0 no-teacher"."""
        said = dict(word.split("=", 1) for word in label.split() if "=" in word)
        alone = label.endswith(" no-teacher")
        use = ALONE if alone else said["loss.kl.use"]
        weight = 0.0 if alone else float(said["loss.kl.weight"])
        return cls(use, float(said["train.lr"]), weight, mean)

    def table(self) -> str:
        """As a table of a recipe."""
        use = "kl" if self.use == ALONE else self.use
        return "\n".join(
            [
                "[[sweep]]",
                f'"stage.student.seed" = {SEEDS}',
                f'"stage.student.loss.kl.use" = ["{use}"]',
                f'"stage.student.train.lr" = [{self.lr}]',
                f'"stage.student.loss.kl.weight" = [{self.weight}]',
            ]
        )


def settings(rows: Iterable[Mapping[str, Any]]) -> list[Setting]:
    """All arms of a comparison, its baseline included."""
    means = {row["arm"]: row["arm_mean"] for row in rows}
    baselines = {row["baseline"]: row["baseline_mean"] for row in rows}
    return [Setting.of(label, mean) for label, mean in {**baselines, **means}.items()]


def chosen(arms: Sequence[Setting]) -> list[Setting]:
    """The best of each divergence, in the order of their names in the comparison."""
    by_use: dict[str, list[Setting]] = defaultdict(list)
    for arm in arms:
        by_use[arm.use].append(arm)
    return [min(of, key=lambda arm: arm.mean) for of in by_use.values()]


def shares(folders: Iterable[Path]) -> dict[str, tuple[float, float]]:
    """By divergence, the mean share in the first and in the last measured step."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for folder in folders:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        measured = [line for line in lines if "gradient/ce" in line]
        if not measured:  # one term alone, or the other with weight 0
            continue
        keys = {key for key in measured[0] if key.startswith("gradient/")} - {"gradient/ce"}
        use = keys.pop().removeprefix("gradient/")
        first, last = (line[f"gradient/{use}"] for line in (measured[0], measured[-1]))
        found[use if measured[0][f"weight/{use}"] else ALONE].append((first, last))
    return {
        use: (fmean(first for first, _ in each), fmean(last for _, last in each))
        for use, each in found.items()
    }


def points(out: Path, values: Sequence[str]) -> list[Path]:
    """The folders of the points of a sweep with these values, each K=V."""
    entries = json.loads((out / "sweep.json").read_text())["points"]
    wanted = [each.split("=", 1) for each in values]
    return [
        out / entry["run"]
        for entry in entries
        if all(str(entry["sets"].get(key)) == value for key, value in wanted)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["choose", "shares", "runs"])
    parser.add_argument("of", nargs="*", help="folders of runs, or K=V")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    asked = parser.parse_args()
    if asked.step == "runs":
        print(*points(asked.out, asked.of))
        return
    if asked.step == "choose":
        rows = [row for row in json.load(sys.stdin) if row["at"] == "tokens"]
        print("\n\n".join(each.table() for each in chosen(settings(rows))))
        return
    for use, (first, last) in shares(map(Path, asked.of)).items():
        print(f"{use:<16} {first:6.1%} {last:6.1%}")


if __name__ == "__main__":
    main()
