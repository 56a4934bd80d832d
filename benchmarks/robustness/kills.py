"""Kill a small run at random moments, start it again until it is done, and compare.

    python benchmarks/robustness/kills.py 1000 --results     1,000 kills, a table in results/

Stages with dropout, a selection, a cached teacher and answers of the student (written for four
steps at once, replayed, against its running average, of which GLS selects tokens) are killed and
started again by the same command until they are done. Weights must be those of a run that was
never killed to the last bit, metrics.jsonl the same but for times, and nothing half may be left.
Else the exit code is 1. The table is written after each run, so that one may stop at any time.

The libraries are imported once, and each start is a fork. It ends itself by SIGKILL when it touches
a file for the n-th time, or the kernel ends it after so much CPU time, be it in the middle of a
write; both are drawn.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager

RESULTS = Path(__file__).resolve().parents[1] / "results"
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "helpers"))

from whole_runs import recipe_text  # noqa: E402 - in a folder of the tests

RECIPE = recipe_text(
    {
        "name": "killed",
        "data.stories": 24,
        "student.config.attention_dropout": 0.1,
        "train.steps": 5,
        "train.micro_batch": 2,
        "train.log_every": 3,
        "train.eval_rows": 6,
    },
    """\
[stage.big]
[stage.small.teacher]
use = "cached"
kind = "topk"
k = 8
teacher = {use = "hf", model = "@big"}
[stage.small.selection]
use = "hardest"
keep = 0.5
[[stage.small.loss]]
use = "kl"
[[stage.small.loss]]
use = "ce"
weight = {start = 1.0, end = 0.1}
on = "all"
[stage.rolled.teacher]
use = "ema"
decay = 0.8
[stage.rolled.rollout]
use = "replay"
of = {use = "student", max_new_tokens = 8}
max_new_tokens = 8
prompt_tokens = 6
share = 0.7
every = 4
[stage.rolled.selection]
use = "gls"
keep = 0.6
score = {use = "kl"}
memory = 300
[[stage.rolled.loss]]
use = "jsd"
[[stage.rolled.loss]]
use = "ce"
where = {source = "data"}
""",
)
TIMES = {"time", "elapsed", "cpu_seconds", "tokens_per_second", "rollout/time_share"}
KILLED = {-signal.SIGKILL: "file", -signal.SIGPROF: "clock"}
HANGS = 600  # seconds after which a start is given up
PLACES = {
    "_evaluate": "evaluation",
    "_save": "checkpoint",
    "write": "writing answers",
    "step": "step",
    "_log": "record",
    "save_final": "final weights",
    "open_stage": "tokenizer",
    "laid": "rows",
    "load_teachers": "loading the teacher",
    "prepare": "preparing",
    "resume": "resuming",
    "_train": "between steps",
    "_run_stage": "opening the folder",
    "run_recipe": "between stages",
    "read_recipe": "reading the recipe",
}
"""What a function of the engine does, the narrowest first; writing the cache is part of a step."""


@dataclass(frozen=True)
class Moment:
    """When a start is killed: at the n-th touch of a file or after so much CPU time; 0 is never."""

    how: str  # "file" or "clock"
    at: float = 0

    def arm(self) -> Callable[[], float]:
        """From now on, in this process. Returns what tells how far it has come."""
        where = open("killed.txt", "w")  # noqa: SIM115
        if self.how == "file":
            touches = Touches(os.getcwd(), int(self.at), where)
            sys.addaudithook(touches)
            return lambda: touches.seen
        # The traceback is written by the signal's handler; then the signal ends the process.
        faulthandler.register(signal.SIGPROF, where, all_threads=False, chain=True)
        signal.setitimer(signal.ITIMER_PROF, self.at)
        began = time.process_time()
        return lambda: time.process_time() - began


class Touches:
    """Counts what opens, renames or removes files, and kills the process at the last one."""

    def __init__(self, folder: str, last: int, where: TextIO) -> None:
        self.folder, self.last, self.where, self.seen = folder, last, where, 0

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        """What Python tells an auditor, just before it is done."""
        if event == "open":
            path = os.path.abspath(os.fspath(arguments[0])) if _is_path(arguments[0]) else ""
            if not path.startswith(self.folder):
                return
        elif not event.startswith(("os.", "shutil.", "fcntl.", "mmap.")):
            return
        self.seen += 1
        if self.seen == self.last:
            faulthandler.dump_traceback(self.where, all_threads=False)
            os.kill(os.getpid(), signal.SIGKILL)


def _is_path(name: object) -> bool:
    return isinstance(name, str | os.PathLike)


def place(folder: Path) -> str:
    """What the engine was about when a start in a folder was killed."""
    names = set(re.findall(r" in (\w+)$", (folder / "killed.txt").read_text(), re.MULTILINE))
    return next((said for name, said in PLACES.items() if name in names), "elsewhere")


def start(folder: Path, host: PluginManager, moment: Moment) -> int:
    """One start of the command in a fork; its exit code, negative where a signal ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _command(folder, host, moment)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _command(folder: Path, host: PluginManager, moment: Moment) -> int:
    import datasets

    from kdcore.runs.runner import RunRequest, run_all

    os.chdir(folder)
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    datasets.config.HF_DATASETS_CACHE = folder / "datasets"
    signal.alarm(HANGS)
    reached = moment.arm()
    try:
        run_all(RunRequest("recipe.toml", Path("runs")), host)
    except Exception:
        traceback.print_exc()
        return 1
    signal.setitimer(signal.ITIMER_PROF, 0)
    Path("reached.txt").write_text(str(reached()))
    return 0


def outcome(folder: Path) -> dict[str, object]:
    """All that must be the same."""
    found: dict[str, object] = {}
    for run in sorted((folder / "runs").glob("killed.*")):
        for path in sorted((run / "final").iterdir()):
            found[f"{run.name}/final/{path.name}"] = path.read_bytes()
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        found[f"{run.name}/metrics"] = [
            {key: each for key, each in line.items() if key not in TIMES} for line in lines
        ]
        found[f"{run.name}/checkpoints"] = sorted(os.listdir(run / "checkpoints"))
        found[f"{run.name}/files"] = sorted(os.listdir(run))
        for name in ("recipe.toml", "resolved.toml", "fingerprints.json"):
            found[f"{run.name}/{name}"] = (run / name).read_bytes()
    return found


def prepared(folder: Path) -> Path:
    """A folder to run in."""
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def warm() -> PluginManager:
    """Import what a run imports. Threads would not survive a fork, so none may have begun."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
    }
    import datasets  # noqa: F401
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, optimization  # noqa: F401

    from kdcore.plugin.manager import PluginManager
    from kdcore.runs import runner  # noqa: F401
    from kdcore.terminal.libraries import without_bars

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, without_bars():
        sizes = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
        config = AutoConfig.for_model("llama", num_attention_heads=2, **sizes)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        AutoModelForCausalLM.from_pretrained(folder)
    for thread in threading.enumerate()[1:]:  # weights are loaded by some, which take their time
        thread.join(HANGS)
    until = time.monotonic() + HANGS
    while len(os.listdir("/proc/self/task")) > 1:  # one that ended is listed for a moment
        assert time.monotonic() < until, "threads are left, which a fork would not have"
        time.sleep(0.01)
    return PluginManager(off=["panel"])


def whole(folder: Path, host: PluginManager) -> tuple[dict[str, object], dict[str, float]]:
    """The result of an uninterrupted run, and how far moments of each kind reach in it."""
    reach = {}
    for how in ("file", "clock"):
        own = prepared(folder / how)
        if start(own, host, Moment(how)):
            raise SystemExit((own / "said.txt").read_text())
        reach[how] = float((own / "reached.txt").read_text())
    return outcome(folder / "clock"), reach


def moments(reach: Mapping[str, float], seed: int) -> Iterator[Moment]:
    """The kinds in turn, and more early moments than late ones: what is begun is shorter."""
    draw = random.Random(seed)
    for how in cycle(reach):
        at = draw.random() ** 1.5 * reach[how]
        yield Moment(how, max(at, 1 if how == "file" else 0.001))


@dataclass
class Report:
    """What was seen."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)  # by place and kind
    runs: int = 0
    wrong: list[str] = field(default_factory=list)


def kill(
    count: int, seed: int, folder: Path, host: PluginManager, tell: Callable[[Report], None]
) -> Report:
    """Until so many starts were killed and the last run is done; `tell` hears of each run."""
    expected, reach = whole(folder / "whole", host)
    report, drawn = Report(), moments(reach, seed)
    while report.kills.total() < count and not report.wrong:
        own = prepared(folder / f"run-{report.runs}")
        report.runs += 1
        while code := start(own, host, _next(drawn, report, count)):
            if code not in KILLED:
                report.wrong.append(f"{own} ended with {code}: {(own / 'said.txt').read_text()}")
                break
            report.kills[place(own), KILLED[code]] += 1
        else:
            found = outcome(own)
            report.wrong += [f"{own}: {key}" for key in expected if expected[key] != found.get(key)]
            report.wrong += [f"{own}: {key} is new" for key in found.keys() - expected.keys()]
        if not report.wrong:
            shutil.rmtree(own)
        tell(report)
    return report


def _next(drawn: Iterator[Moment], report: Report, count: int) -> Moment:
    return next(drawn) if report.kills.total() < count else Moment("clock")


def table(report: Report, seed: int) -> str:
    """What was seen, for people."""
    how = "and all ended as one that was never killed" if not report.wrong else "and some are WRONG"
    lines = [
        f"{report.kills.total()} kills in {report.runs} runs (seed {seed}), {how}.",
        "",
        "| what the run was about | killed at a file | killed after CPU time |",
        "|---|---|---|",
    ]
    for where in sorted({where for where, _ in report.kills}):
        counts = (report.kills[where, kind] for kind in ("file", "clock"))
        lines.append(f"| {where} | {' | '.join(map(str, counts))} |")
    return "\n".join([*lines, "", *report.wrong])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("kills", type=int, nargs="?", default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", action="store_true", help="write the table into results/")
    asked = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="kdcore-kills-"))

    def tell(report: Report) -> None:
        """So that a benchmark that is stopped leaves what it saw."""
        if asked.results:
            head = f"# Kills and continuations, {date.today()}, {os.cpu_count()} cores\n\n"
            command = f"`python benchmarks/robustness/kills.py {asked.kills} --seed {asked.seed}`"
            path = RESULTS / f"{date.today()}-kills.md"
            path.write_text(f"{head}{command}: {table(report, asked.seed)}".rstrip() + "\n")

    report = kill(asked.kills, asked.seed, folder, warm(), tell)
    print(table(report, asked.seed))
    if not report.wrong:
        shutil.rmtree(folder)
    return int(bool(report.wrong))


if __name__ == "__main__":
    raise SystemExit(main())
