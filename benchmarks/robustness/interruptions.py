"""Send signals to a small run at random moments, start it again until it is done, and compare.

    python benchmarks/robustness/interruptions.py 250 --results                a table in results/
    python benchmarks/robustness/interruptions.py 250 --processes 2 --results

Two stages with a cached teacher get SIGHUP, SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 in turn: in two
processes the launcher gets it, one of them, or all (as SLURM does). Each start that gets one must
end with the signal's documented exit code, with a checkpoint of the step that was done last, and
with none of its processes left after five seconds. Started again until it is done, the run must end
with the weights of an uninterrupted one to the last bit, and metrics.jsonl the same but for
times.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from forked import PROCESSES, begin, command, ended, said
from kills import RESULTS, outcome, prepared, warm

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager

CODES = {"SIGHUP": 129, "SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 143, "SIGUSR2": 143}
ORPHANS = 5.0  # seconds after which there must be none
STEPS = "steps.txt"  # of each step that was done, the run's folder and its number


def long(folder: Path) -> Path:
    """A folder to run in, whose run takes more steps: these are what is to be met."""
    path = prepared(folder) / "recipe.toml"
    path.write_text(path.read_text().replace("steps = 5", "steps = 30"))
    return folder


def note_steps() -> None:
    """From now on, in this process and its forks."""
    from kdcore.training.trainer import Trainer

    step = Trainer.step

    def noted(trainer: Trainer, number: int) -> None:
        step(trainer, number)
        if trainer.run.main:
            with open(STEPS, "a") as file:
                file.write(f"{trainer.run.folder} {number}\n")

    setattr(Trainer, "step", noted)  # noqa: B010


@dataclass
class Report:
    """What was seen."""

    ends: Counter[tuple[str, str]] = field(default_factory=Counter)  # by signal and moment
    runs: int = 0
    longest: float = 0.0  # seconds from a signal to the end
    wrong: list[str] = field(default_factory=list)


@dataclass
class Interruptions:
    """The same command again and again, in so many processes."""

    host: PluginManager
    processes: int
    draw: random.Random
    report: Report = field(default_factory=Report)
    seconds: float = 0.0  # of a whole run

    @cached_property
    def arguments(self) -> list[str]:
        """Of the command."""
        several = ["--processes", str(self.processes)] if self.processes > 1 else []
        return ["run", "recipe.toml", "-q", *several]

    def whole(self, folder: Path) -> dict[str, object]:
        """The result of an uninterrupted run."""
        own, began = long(folder), time.monotonic()
        if command(own, self.host, self.arguments, note_steps):
            raise SystemExit(said(own))
        self.seconds = time.monotonic() - began
        return outcome(own)

    def interrupt(self, own: Path, name: str) -> int:
        """One start that gets a signal; its exit code. Complains of what is wrong."""
        for file in (STEPS, PROCESSES, "said.txt"):
            (own / file).unlink(missing_ok=True)
        child = begin(own, self.host, self.arguments, note_steps)
        while not (own / "said.txt").exists():
            time.sleep(0.01)
        time.sleep(self.draw.random() * self.seconds)
        whom = self._send(child, own, name)
        began = time.monotonic()
        code = ended(child)
        if code == 0:
            return code
        self.report.longest = max(self.report.longest, time.monotonic() - began)
        done = _done(own)
        moment = "in a stage's steps" if done else "before or between"
        self.report.ends[name, moment] += 1
        for fault in (_code(code, name), done and _checkpoint(own, done), _orphans(own)):
            if fault:
                complaint = f"{own} {name} to {whom}: {fault}: {said(own)[-700:]}"
                self.report.wrong.append(complaint)
                print(complaint, file=sys.stderr, flush=True)
        return code

    def _send(self, child: int, own: Path, name: str) -> str:
        """To whom the draw says."""
        others = _others(own)
        choices = {"the command": [child]}
        if others:
            choices["one process"] = [self.draw.choice(others)]
            if name != "SIGINT":  # the second one ends at once
                choices["all"] = [child, *others]
        whom = self.draw.choice(sorted(choices))
        for process in choices[whom]:
            with suppress(ProcessLookupError):
                os.kill(process, getattr(signal, name))
        return whom


def _others(own: Path) -> list[int]:
    path = own / PROCESSES
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def _done(own: Path) -> tuple[Path, int] | None:
    """The run's folder and the number of the step that was done last, in a stage that is not."""
    path = own / STEPS
    lines = path.read_text().splitlines() if path.exists() else []
    if not lines:
        return None
    folder, _, number = lines[-1].rpartition(" ")
    return None if (own / folder / "final").exists() else (own / folder, int(number))


def _code(code: int, name: str) -> str:
    return "" if code == CODES[name] else f"ended with {code}"


def _checkpoint(own: Path, done: tuple[Path, int]) -> str:
    folder, number = done
    there = sorted(os.listdir(folder / "checkpoints"))
    return "" if f"step-{number}" in there else f"no checkpoint of step {number}: {there}"


def _orphans(own: Path) -> str:
    """Processes of the command that run on."""
    until = time.monotonic() + ORPHANS
    left = _others(own)
    while left and time.monotonic() < until:
        left = [each for each in left if _runs(each)]
        time.sleep(0.02)
    return f"processes {left} run on" if left else ""


def _runs(process: int) -> bool:
    with suppress(OSError):
        state = re.sub(r".*\) ", "", Path(f"/proc/{process}/stat").read_text())[0]
        return state not in "ZX"
    return False


def interrupt(count: int, processes: int, seed: int, folder: Path, host: PluginManager) -> Report:
    """Until so many starts were interrupted and the last run is done."""
    made = Interruptions(host, processes, random.Random(seed))
    report, expected = made.report, made.whole(folder / "whole")
    while (done := report.ends.total()) < count:
        own = long(folder / f"run-{report.runs}")
        report.runs += 1
        while done < count and made.interrupt(own, list(CODES)[done % len(CODES)]):
            done = report.ends.total()
        if command(own, host, made.arguments, note_steps):
            report.wrong.append(f"{own} cannot resume: {said(own)[-700:]}")
            print(report.wrong[-1], file=sys.stderr, flush=True)
            continue
        found = outcome(own)
        others = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
        if others := [key for key in others if not key.endswith("checkpoints")]:  # more are kept
            report.wrong.append(f"{own}: {others} differ")
            print(report.wrong[-1], file=sys.stderr, flush=True)
        else:
            shutil.rmtree(own)
    return report


def table(report: Report, processes: int) -> str:
    """What was seen, for people."""
    good = "none ended otherwise than documented" if not report.wrong else "and some are WRONG"
    moments = sorted({moment for _, moment in report.ends})
    lines = [
        f"{report.ends.total()} signals in {report.runs} runs of {processes} process"
        f"{'es' * (processes > 1)}; {good}. From a signal to the end it took at most "
        f"{report.longest:.1f} seconds.",
        "",
        f"| signal | {' | '.join(moments)} |",
        "|---" * (len(moments) + 1) + "|",
    ]
    for name in CODES:
        counts = (str(report.ends[name, moment]) for moment in moments)
        lines.append(f"| {name} | {' | '.join(counts)} |")
    return "\n".join([*lines, "", *report.wrong])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("count", type=int, nargs="?", default=10)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", action="store_true", help="write the table into results/")
    asked = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="kdcore-interruptions-"))
    report = interrupt(asked.count, asked.processes, asked.seed, folder, warm())
    text = table(report, asked.processes)
    print(text)
    if asked.results:
        head = f"# Signals, {date.today()}, {os.cpu_count()} cores\n\n"
        options = f"--processes {asked.processes} --seed {asked.seed}"
        call = f"`python benchmarks/robustness/interruptions.py {asked.count} {options}`"
        path = RESULTS / f"{date.today()}-signals-{asked.processes}.md"
        path.write_text(f"{head}{call}: {text}".rstrip() + "\n")
    if not report.wrong:
        shutil.rmtree(folder)
    return int(bool(report.wrong))


if __name__ == "__main__":
    raise SystemExit(main())
