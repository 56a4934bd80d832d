"""Kill a sweep's coordinator and its workers at random moments, type it again, and compare.

    python benchmarks/robustness/sweeps.py 200 --results     200 kills, a table in results/
    python benchmarks/robustness/sweeps.py 200 --sweep FILE --out DIR --alone 10

Two seeds of a small recipe with a teacher are swept by `kdcore sweep --on local:2`. After a drawn
number of new lines in the runs' records one of its processes gets SIGKILL: a worker, whom the
coordinator starts again, or the coordinator, after which the same command is typed again. In the
end weights must be those of runs that were never killed, to the last bit, every point must stand in
sweep.json, and no process may be left. Else the exit code is 1.

With `--sweep` the recipe is a file of yours, swept once with all kills spread over it: each shared
stage must have ended once, and the shared stages and `--alone` other runs, drawn at random, must
have the weights of the same runs alone, one after another. With 0 kills it also says what the sweep
took in CPU seconds and by the clock, beside those runs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "helpers"))

from whole_runs import recipe_text  # noqa: E402 - in a folder of the tests

STEPS = 60
RECIPE = recipe_text(
    {
        "name": "killed",
        "seed": 0,
        "data.stories": 40,
        "train.steps": STEPS,
        "train.eval_every": 20,
        "train.save_every": 7,
    },
    """\
[stage.big]
[stage.small.teacher]
use = "hf"
model = "@big"
[[stage.small.loss]]
use = "kl"
[sweep]
"stage.small.seed" = [0, 1]
""",
)
OPTIONS = ["-p", "no:panel"]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "kdcore", *words, *OPTIONS]


def lines(out: Path) -> int:
    """How many lines the runs have written so far."""
    return sum(path.read_bytes().count(b"\n") for path in out.glob("*/metrics.jsonl"))


def workers_of(process: int) -> list[int]:
    """The processes that a process started."""
    with suppress(OSError):
        text = Path(f"/proc/{process}/task/{process}/children").read_text()
        return [int(word) for word in text.split()]
    return []


def weights(out: Path) -> dict[str, bytes]:
    """The final weights of every finished run, by its folder's name."""
    found = out.glob("*/final/model.safetensors")
    return {path.parts[-3]: path.read_bytes() for path in found}


class Killer:
    """Types the command, kills, and counts."""

    def __init__(self, folder: Path, recipe: str, kills: int, rng: random.Random) -> None:
        self.folder, self.recipe, self.kills, self.rng = folder, recipe, kills, rng
        self.killed: Counter[str] = Counter()
        self.starts = 0
        self.apart = STEPS // 2  # at most so many lines between two kills
        self.later = 0.0  # at most so many seconds after the line
        self.coordinators = 0.4  # share of the kills

    def sweep(self, out: Path) -> None:
        """One sweep to its end, however often it takes."""
        words = ["sweep", self.recipe, "--on", "local:2", "--retries", "20", "--out", str(out)]
        while True:
            self.starts += 1
            with (self.folder / "said.txt").open("w") as said:
                child = subprocess.Popen(
                    command(*words),
                    **{"cwd": self.folder, "stdout": said, "stderr": said, "text": True},
                )
                self._watch(child, out)
                code = child.wait()
            if code == 0:
                return
            if code != -signal.SIGKILL:
                text = (self.folder / "said.txt").read_text()
                raise AssertionError(f"the sweep ended with {code}:\n{text}")

    def _watch(self, child: subprocess.Popen[str], out: Path) -> None:
        """Kill it or its workers as long as kills are left."""
        until = lines(out) + self.rng.randint(1, self.apart)
        while child.poll() is None and self.killed.total() < self.kills:
            if lines(out) >= until and workers_of(child.pid):
                time.sleep(self.rng.uniform(0, self.later))
                workers = workers_of(child.pid)
                worker = workers and self.rng.random() >= self.coordinators
                victim = self.rng.choice(workers) if worker else child.pid
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    self.killed["coordinator" if victim == child.pid else "worker"] += 1
                until = lines(out) + self.rng.randint(1, self.apart)
            time.sleep(0.1 if self.later else 0.02)


def compare(out: Path, expected: dict[str, bytes]) -> None:
    """Raise AssertionError where anything is other than without kills."""
    found = weights(out)
    differ = [name for name in expected if found.get(name) != expected[name]]
    assert not differ and found.keys() == expected.keys(), f"{out}: {differ} are other weights"
    points = json.loads((out / "sweep.json").read_text())["points"]
    assert len(points) == 2 and all((out / each["run"]).is_dir() for each in points)
    assert not list(out.glob("*/.final*")), f"{out}: something half is left"


def nodes(recipe: str, out: Path) -> list[dict[str, Any]]:
    """The graph of a sweep."""
    words = command("sweep", recipe, "--dry-run", "--json", "--out", str(out))
    said = subprocess.run(words, check=True, capture_output=True, text=True)
    found: list[dict[str, Any]] = json.loads(said.stdout)["nodes"]
    return found


def ends(folder: Path) -> int:
    """How often a run reached its last step, by its log."""
    return len(re.findall(r"ends after step (\d+) of \1$", (folder / "log.txt").read_text(), re.M))


def cpu_seconds() -> float:
    """What processes that have ended took, and those that they waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def check_graph(found: list[dict[str, Any]], out: Path) -> None:
    """Raise AssertionError unless each run ended once and nothing else is there."""
    assert all(node["finished"] for node in found), "some runs are not finished"
    names = [f"{node['name']}-{node['key']}" for node in found]
    again = [name for name in names if ends(out / name) != 1]
    assert not again, f"{again} did not end exactly once"
    folders = {path.parent.name for path in out.glob("*/metrics.jsonl")}
    assert folders == {*names}, "there are folders of other runs"


def alone(chosen: list[dict[str, Any]], out: Path) -> list[float]:
    """Run each by itself into a folder of its own, compare weights, and return CPU seconds."""
    apart, took = out.with_name(f"{out.name}-alone"), []
    for node in chosen:
        words, before = node["command"][1:-1], cpu_seconds()  # without the program and the folder
        subprocess.run(command(*words, str(apart), "-q"), check=True, capture_output=True)
        took.append(cpu_seconds() - before)
    made, swept = weights(apart), weights(out)
    differ = [name for name in made if made[name] != swept[name]]
    assert len(made) == len(chosen) and not differ, f"{differ} have other weights than alone"
    return took


def whole(asked: argparse.Namespace) -> None:
    """A sweep of the user's, with all kills spread over it."""
    killer = Killer(Path.cwd(), asked.sweep, asked.kills, random.Random(asked.seed))
    killer.apart, killer.later, killer.coordinators = asked.apart, 3.0, asked.coordinators
    began = time.monotonic()
    killer.sweep(asked.out)
    clock, cpu = time.monotonic() - began, cpu_seconds()
    who = " and ".join(f"{n} of a {name}" for name, n in sorted(killer.killed.items()))
    print(f"{killer.killed.total()} kills ({who}), typed {killer.starts} times", flush=True)
    found = nodes(asked.sweep, asked.out)
    check_graph(found, asked.out)
    needed = {need for node in found for need in node["needs"]}
    print(f"{len(found)} runs, {len(needed)} of them needed by others: each ended once", flush=True)
    shared = [node for node in found if node["key"] in needed]
    drawn = killer.rng.sample([node for node in found if node["key"] not in needed], asked.alone)
    took = alone([*shared, *drawn], asked.out)
    print(f"{len(took)} runs, {len(drawn)} of them drawn at random, have the same weights alone")
    if not asked.kills:
        print(f"the sweep: {cpu:.0f} CPU seconds, {clock:.0f} s by the clock")
        print("alone:", " ".join(f"{seconds:.1f}" for seconds in took), "CPU seconds")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", action="store_true")
    parser.add_argument("--sweep", metavar="FILE")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--alone", type=int, default=10)
    parser.add_argument("--apart", type=int, default=30, help="most lines between two kills")
    parser.add_argument("--coordinators", type=float, default=0.4, help="their share of kills")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if asked.sweep:
        whole(asked)
        return
    folder = Path(tempfile.mkdtemp(prefix="kdcore-sweeps-"))
    (folder / "killed.toml").write_text(RECIPE)
    alone = ["--set", "sweep=", "--each", "stage.small.seed=0,1", "--out", "alone"]
    subprocess.run(
        command("run", "killed.toml", "-q", *alone), cwd=folder, check=True, capture_output=True
    )
    expected = weights(folder / "alone")
    killer, rounds = Killer(folder, "killed.toml", asked.kills, random.Random(asked.seed)), 0
    while killer.killed.total() < asked.kills:
        rounds += 1
        killer.sweep(folder / f"runs{rounds}")
        compare(folder / f"runs{rounds}", expected)
    who = " and ".join(f"{n} of a {name}" for name, n in sorted(killer.killed.items()))
    said = (
        f"{asked.kills} kills ({who}) in {rounds} sweeps, typed {killer.starts} times: all the same"
    )
    print(said)
    if asked.results:
        typed = f"`python benchmarks/robustness/sweeps.py {asked.kills} --seed {asked.seed}`"
        path = RESULTS / f"{date.today()}-sweep-kills.md"
        path.write_text(f"# Sweeps that are killed, {date.today()}\n\n{typed}: {said}.\n")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
