"""On-policy against off-policy training at equal CPU seconds: paired differences over seeds.

    python benchmarks/learning/on_policy.py --seeds 0 1 2 3 4

Runs quickstart_onpolicy with each seed (teacher and student too), on one thread. CPU seconds are
those of the training steps, writing included, evaluations and checkpoints not. The table has bits
per byte of held-out text and `facts` of both stages at their last step, and the mean of the paired
differences with its 95 % interval (Student's t). Runs lie in --out and are taken up again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kdcore import Record, Run, hookimpl

RECIPE, STAGES, FIGURES = (
    "quickstart_onpolicy",
    ("offpolicy", "onpolicy"),
    ("eval/bits_per_byte", "eval/facts"),
)
_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t at 97.5 % by the number of pairs."""


class Clock:
    """CPU seconds of a stage's steps: from the start of each to the next, or to its record."""

    seconds = 0.0
    begun: float | None = None

    def stop(self) -> None:
        if self.begun is not None:
            self.seconds += time.process_time() - self.begun
        self.begun = None


_CLOCK = Clock()


@hookimpl
def kdcore_run_start(run: Run) -> None:
    _CLOCK.seconds, _CLOCK.begun = 0.0, None


@hookimpl
def kdcore_step_start(run: Run, step: int) -> None:
    _CLOCK.stop()
    _CLOCK.begun = time.process_time()


@hookimpl
def kdcore_log(run: Run, record: Record) -> None:
    _CLOCK.stop()
    if record.step == run.steps:
        (run.folder / "cpu_seconds.json").write_text(json.dumps(_CLOCK.seconds))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and print the table."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    asked.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    asked.add_argument("--out", type=Path, default=Path("on-policy"))
    asked.add_argument("--set", action="append", default=[], metavar="K=V")
    options = asked.parse_args(arguments)
    places = {seed: options.out / f"seed-{seed}" for seed in options.seeds}
    for seed, place in places.items():
        run([f"seed={seed}", *options.set], place)
    for line in table(places):
        print(line)


def run(sets: Sequence[str], out: Path) -> None:
    """The recipe in a process of its own, on one thread."""
    words = [word for each in sets for word in ("--set", each)]
    command = [sys.executable, "-m", "kdcore", "run", RECIPE, *words, "--out", str(out)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "-q", "-p", "no:panel", "-p", __file__], env=one_thread, check=True)


def table(places: dict[int, Path]) -> list[str]:
    """A line for each seed, and the mean difference of each figure."""
    lines = ["| seed | stage | CPU seconds | bits per byte | facts |", "|---|---|---|---|---|"]
    differences: dict[str, list[float]] = {figure: [] for figure in FIGURES}
    for seed, place in places.items():
        found = {stage: measured(place, stage) for stage in STAGES}
        for stage, (seconds, values) in found.items():
            bits, facts = (values[figure] for figure in FIGURES)
            lines.append(f"| {seed} | {stage} | {seconds:.1f} | {bits:.4f} | {facts:.2f} |")
        for figure in FIGURES:
            off, on = (found[stage][1][figure] for stage in STAGES)
            differences[figure].append(on - off)
    for figure, values in differences.items():
        lines.append(f"{figure}, {STAGES[1]} less {STAGES[0]}: {interval(values)}")
    return lines


def measured(place: Path, stage: str) -> tuple[float, dict[str, float]]:
    """CPU seconds and the last figures of a stage."""
    (folder,) = place.glob(f"*.{stage}-*")
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    last = [record for record in records if FIGURES[0] in record][-1]
    seconds = json.loads((folder / "cpu_seconds.json").read_text())
    return seconds, {figure: float(last[figure]) for figure in FIGURES}


def interval(differences: Sequence[float]) -> str:
    """Their mean with its 95 % interval."""
    mean, pairs = statistics.fmean(differences), len(differences)
    if pairs not in _T:
        return f"{mean:+.4f} ({pairs} pairs)"
    half = _T[pairs] * statistics.stdev(differences) / math.sqrt(pairs)
    return f"{mean:+.4f}, 95 % from {mean - half:+.4f} to {mean + half:+.4f} ({pairs} pairs)"


if __name__ == "__main__":
    main()
