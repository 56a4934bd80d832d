"""End one of two processes at a random step, or slow the first one, and compare.

    python benchmarks/robustness/processes.py 50 --results            a table in results/
    python benchmarks/robustness/processes.py 0 --slow 90 --results   with the first one slowed

Two stages with dropout and a cached teacher run in two processes. One of them is killed before,
within or behind the gradients of a step that is drawn, or runs out of memory before or within
them, with micro-batches of two rows or of one. The other must end within a minute, and the command
with the exit code and the sentence of the case: 137, 0 (all start again with half the micro-batch)
and 1. Then the same command must end with the weights of an undisturbed run to the last bit,
and with its lines of metrics.jsonl but for times; where the micro-batch was halved, of a run whose
processes halved it at that step.

With `--slow S` the first process sleeps so long where the others wait for it: for the tokenizer,
the tokens, and the final weights. Collectives give up after a third of that, and both must finish.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forked import command, said
from kills import RESULTS, outcome, prepared, warm

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager

ARGUMENTS = ("run", "recipe.toml", "--processes", "2")
STEPS, STAGES = 5, ("killed.big", "killed.small")
MINUTE = 60.0
HARMED = "harmed.txt"  # written once, so that the second start is spared


@dataclass(frozen=True)
class Case:
    """What happens to a process, and how the command ends."""

    name: str
    rows: int  # of a micro-batch
    code: int
    sentence: str
    halves: bool = False


CASES = (
    Case("killed", 2, 137, "process {rank} ended with -9"),
    Case("out of memory, two rows", 2, 0, "train.micro_batch is now 1", halves=True),
    Case("out of memory, one row", 1, 1, "the device is out of memory"),
)


@dataclass(frozen=True)
class Harm:
    """A case in a process, at a step of a stage, before, within or behind its gradients."""

    case: Case
    rank: int
    stage: str
    step: int
    moment: str

    @classmethod
    def drawn(cls, case: Case, draw: random.Random) -> Harm:
        """At random."""
        moments = ("before", "within", "behind")[: 2 + (case.name == "killed")]
        rank, stage, step = draw.randrange(2), draw.choice(STAGES), draw.randint(1, STEPS)
        return cls(case, rank, stage, step, draw.choice(moments))

    def arm(self) -> None:
        """From now on, in this process and its forks."""
        from kdcore.training.trainer import Trainer

        name = "backward" if self.moment == "within" else "gradients"
        plain = getattr(Trainer, name)

        def harmed(trainer: Trainer, *arguments: Any) -> Any:
            due = (trainer.run.recipe.run_name, trainer.run.step + 1) == (self.stage, self.step)
            if not due or trainer.run.process != self.rank or Path(HARMED).exists():
                return plain(trainer, *arguments)
            if self.moment == "behind":
                plain(trainer, *arguments)
            Path(HARMED).touch()
            return self._do()

        setattr(Trainer, name, harmed)

    def _do(self) -> None:
        import torch

        if self.case.name == "killed":
            os.kill(os.getpid(), 9)
        raise torch.OutOfMemoryError("out of memory, as was asked for")

    def halve(self) -> None:
        """Instead, all processes halve their micro-batches by themselves at this step."""
        from kdcore.training.trainer import Trainer

        step_of = Trainer.step

        def halved(trainer: Trainer, step: int) -> None:
            if (trainer.run.recipe.run_name, step) == (self.stage, self.step):
                trainer.run.micro_batch = 1
                trainer.prefetcher.clear()
            step_of(trainer, step)

        setattr(Trainer, "step", halved)  # noqa: B010


@dataclass
class Report:
    """What was seen."""

    good: Counter[tuple[str, int]] = field(default_factory=Counter)  # by case and process
    longest: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def complain(self, fault: str) -> None:
        """Now, and at the end."""
        self.wrong.append(fault)
        print(fault, file=sys.stderr, flush=True)


def with_rows(folder: Path, rows: int) -> Path:
    """A folder to run in, with micro-batches of so many rows."""
    path = prepared(folder) / "recipe.toml"
    path.write_text(path.read_text().replace("micro_batch = 2", f"micro_batch = {rows}"))
    return folder


def results(folder: Path) -> dict[str, object]:
    """All that must be the same: not which checkpoints are kept, nor what was found to fit."""
    return {
        key: each for key, each in outcome(folder).items() if not key.endswith(("points", "files"))
    }


def whole(
    folder: Path, rows: int, host: PluginManager, before: Callable[[], None]
) -> dict[str, object]:
    """The result of an undisturbed run."""
    own = with_rows(folder, rows)
    if command(own, host, ARGUMENTS, before):
        raise SystemExit(said(own))
    return results(own)


def harm(count: int, seed: int, folder: Path, host: PluginManager) -> Report:
    """The cases in turn, each in a folder of its own."""
    draw, report = random.Random(seed), Report()
    unharmed: dict[int, dict[str, object]] = {}
    for number in range(count):
        case = CASES[number % len(CASES)]
        harmed = Harm.drawn(case, draw)
        if case.halves:
            expected = whole(folder / f"halved-{number}", case.rows, host, harmed.halve)
        else:
            if case.rows not in unharmed:
                unharmed[case.rows] = whole(folder / f"rows-{case.rows}", case.rows, host, _nothing)
            expected = unharmed[case.rows]
        own = with_rows(folder / str(number), case.rows)
        if fault := _fault(own, host, harmed, expected, report):
            report.complain(f"{own}: {harmed}: {fault}: {said(own)[-900:]}")
        else:
            report.good[case.name, harmed.rank] += 1
            shutil.rmtree(own)
    return report


def _nothing() -> None:
    """No harm."""


def _fault(
    own: Path, host: PluginManager, harmed: Harm, expected: dict[str, object], report: Report
) -> str:
    began = time.monotonic()
    code = command(own, host, ARGUMENTS, harmed.arm)
    seconds, text = time.monotonic() - began, said(own)
    report.longest = max(report.longest, seconds)
    if code != harmed.case.code or "Traceback" in text or seconds > MINUTE:
        return f"ended with {code} after {seconds:.0f} seconds"
    if harmed.case.sentence.format(rank=harmed.rank) not in text or "a bug in" in text:
        return "says something else"
    if not (own / HARMED).exists():
        return "was not harmed"
    if command(own, host, ARGUMENTS):
        return f"does not go on after {text[-900:]}"
    found = results(own)
    others = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    return f"{others} differ" if others else ""


def slow(seconds: float, place: str) -> None:
    """From now on the first process sleeps there, and collectives give up after a third of that."""
    import torch.distributed

    from kdcore.data import tokenized
    from kdcore.runs import artifacts, runner

    limit = timedelta(seconds=seconds / 3)
    init = torch.distributed.init_process_group
    torch.distributed.init_process_group = partial(init, timeout=limit)
    module = {"_keep_tokenizer": artifacts, "stored": tokenized, "save_final": runner}[place]
    plain = getattr(module, place)

    def slowed(*arguments: Any, **options: Any) -> Any:
        if os.environ.get("RANK") == "0" and not Path(HARMED).exists():
            Path(HARMED).touch()
            time.sleep(seconds)
        return plain(*arguments, **options)

    setattr(module, place, slowed)


def slowed(seconds: float, folder: Path, host: PluginManager) -> list[str]:
    """The places, and how the command ended there."""
    expected = whole(folder / "unslowed", 2, host, _nothing)
    lines = []
    for place in ("_keep_tokenizer", "stored", "save_final"):
        own = with_rows(folder / place, 2)
        code = command(own, host, ARGUMENTS, partial(slow, seconds, place))
        fault = f": {said(own)[-900:]}" if code else ""
        if not code and (not (own / HARMED).exists() or results(own) != expected):
            fault = ": WRONG, as if it was not slowed, or with other results"
        lines.append(f"* {place}: ended with {code}{fault}")
        print(lines[-1], flush=True)
    return lines


def table(report: Report) -> str:
    """What was seen, for people."""
    good = report.good.total()
    lines = [
        f"{good} of {good + len(report.wrong)} ended as they should, after at most "
        f"{report.longest:.0f} seconds.",
        "",
        "| what happened | to the first process | to the second |\n|---|---|---|",
    ]
    for case in CASES:
        counts = (str(report.good[case.name, rank]) for rank in range(2))
        lines.append(f"| {case.name} | {' | '.join(counts)} |")
    return "\n".join([*lines, "", *report.wrong])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("count", type=int, nargs="?", default=6)
    parser.add_argument("--slow", type=float, default=0, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", action="store_true", help="write the table into results/")
    asked = parser.parse_args(arguments)
    folder, host = Path(tempfile.mkdtemp(prefix="kdcore-processes-")), warm()
    report = harm(asked.count, asked.seed, folder, host)
    text = table(report)
    print(text)
    lines = slowed(asked.slow, folder, host) if asked.slow else []
    failed = bool(report.wrong) or any("with 0" not in line or "WRONG" in line for line in lines)
    if asked.results:
        head = f"# One of two processes, {date.today()}, {os.cpu_count()} cores\n\n"
        options = f"--seed {asked.seed}" + f" --slow {asked.slow:.0f}" * bool(asked.slow)
        call = f"`python benchmarks/robustness/processes.py {asked.count} {options}`"
        heading = (
            f"\n\nThe first process slowed by {asked.slow:.0f} seconds, with a time-out of a third:"
        )
        slower = "\n\n".join([heading, "\n".join(lines)]) if lines else ""
        path = RESULTS / f"{date.today()}-processes.md"
        path.write_text(f"{head}{call}: {text}{slower}".rstrip() + "\n")
    if not failed:
        shutil.rmtree(folder)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
