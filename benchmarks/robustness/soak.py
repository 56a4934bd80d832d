"""Thousands of tiny steps with checkpoints, kills and resumes: memory, files, disk and step time.

    python benchmarks/robustness/soak.py --minutes 30

A run of the whole engine (a teacher, a cached reference for RHO, evals, checkpoints every 50 steps)
is killed again and again, mostly by SIGKILL, now and then by SIGTERM, and continued by the same
command. A segment is the life of one process, of `--segment` seconds on average; each is a row of
the table. Nothing may grow: neither inside a segment nor from one to the next.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

SAVE_EVERY = 50
MEMORY, FILES, DISK, PACE = 0.03, 4, 1.2, 1.25  # how much growth is still flat
RECIPE = f"""\
[tokenizer]
use = "bpe"
vocab_size = 300
[data]
use = "stories"
stories = 200
validation = 20
block = 64
[student.config]
model_type = "llama"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 2
[train]
lr = 1e-3
batch = 4
log_every = 10
save_every = {SAVE_EVERY}
eval_every = 200
eval_rows = 16
[stage.teacher.train]
steps = 50
[[stage.teacher.loss]]
use = "ce"
[stage.pupil.teacher]
use = "hf"
model = "@teacher"
[[stage.pupil.loss]]
use = "kl"
[stage.pupil.selection]
use = "rho"
keep = 0.6
reference = {{use = "cached", teacher = {{use = "hf", model = "@teacher"}}}}
[[stage.pupil.eval]]
use = "agreement"
[[stage.pupil.eval]]
use = "samples"
max_new_tokens = 8
[stage.pupil.train]
schedule = "constant"
steps = 10_000_000
"""


@dataclass
class Segment:
    """The life of one process."""

    end: str
    first: int = 0  # the step that it continued after
    last: int = 0
    memory: list[float] = field(default_factory=list)  # MB, while it trained
    files: list[int] = field(default_factory=list)
    disk: float = 0  # MB, without the records that grow by design
    pace: float | None = None  # CPU ms a step, saving and evaluating included

    def settled(self) -> tuple[float, float]:
        """The median memory of the second quarter and of the last; the first is warming up."""
        quarter = max(1, len(self.memory) // 4)
        middle = self.memory[quarter : 2 * quarter] or self.memory
        return statistics.median(middle), statistics.median(self.memory[-quarter:])


def soak(folder: Path, minutes: float, length: float, seed: int) -> list[Segment]:
    """Run, kill and continue for so long."""
    (folder / "soak.toml").write_text(RECIPE)
    drawn, stop = random.Random(seed), time.time() + 60 * minutes
    command = [sys.executable, "-m", "kdcore", "run", "soak.toml", "-q"]
    segments: list[Segment] = []
    while time.time() < stop:
        end = "SIGTERM" if drawn.random() < 0.2 else "SIGKILL"
        segment = Segment(end, first=newest(folder))
        child = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
        watch(child, folder, segment, drawn.uniform(0.5, 1.5) * length)
        child.send_signal(getattr(signal, end))
        code = child.wait()
        expected = 143 if end == "SIGTERM" else -signal.SIGKILL
        if code != expected:
            raise SystemExit(f"segment {len(segments) + 1} ended with {code}, not {expected}")
        measure(folder, segment)
        segments.append(segment)
        print(row(len(segments), segment), flush=True)
    return segments


def watch(child: subprocess.Popen[bytes], folder: Path, segment: Segment, seconds: float) -> None:
    """Look at the process twice a second, from its first new checkpoint on."""
    proc, saved = Path(f"/proc/{child.pid}"), list[tuple[int, float]]()
    began = 0.0
    while not saved or time.time() < began + seconds:
        time.sleep(0.5)
        if child.poll() is not None:
            raise SystemExit(f"the run ended by itself with {child.returncode}")
        step = newest(folder)
        if step > (saved[-1][0] if saved else segment.first):
            began = began if saved else time.time()
            saved.append((step, processor_seconds(proc)))
        if saved:
            pages = int((proc / "statm").read_text().split()[1])
            segment.memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
            segment.files.append(len(os.listdir(proc / "fd")))
    (first, before), (last, after) = saved[0], saved[-1]
    segment.pace = 1000 * (after - before) / (last - first) if last > first else None


def processor_seconds(proc: Path) -> float:
    """What a process has used: on shared cores the clock on the wall says nothing of it."""
    used = (proc / "stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")


def measure(folder: Path, segment: Segment) -> None:
    """What the segment left behind."""
    segment.last = newest(folder)
    records = {"metrics.jsonl", "log.txt"}
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in records]
    segment.disk = sum(path.stat().st_size for path in files) / 2**20


def pupil(folder: Path) -> Path | None:
    """The run that is killed, once it is there."""
    return next(folder.glob("runs/soak.pupil-*"), None)


def newest(folder: Path) -> int:
    """The step of its newest checkpoint; 0 without one."""
    run = pupil(folder)
    names = (path.name[5:] for path in run.glob("checkpoints/step-*")) if run else ()
    return max((int(name) for name in names if name.isdigit()), default=0)


def row(number: int, segment: Segment) -> str:
    """A line of the table."""
    early, late = segment.settled()
    files = f"{min(segment.files)} to {max(segment.files)}"
    pace = "" if segment.pace is None else f"{segment.pace:.1f}"
    return (
        f"| {number} | {segment.first:,} to {segment.last:,} | {early:.0f} | {late:.0f} | {files} "
        f"| {segment.disk:.2f} | {pace} | {segment.end} |"
    )


def verdict(segments: Sequence[Segment]) -> str:
    """One line: flat, or what grew from the first third of the segments to the last."""
    third = max(1, len(segments) // 3)
    first, last = segments[:third], segments[-third:]
    inside = statistics.median(late / early for early, late in map(Segment.settled, segments))
    grown = {
        f"memory inside a segment (by {inside - 1:.1%})": inside > 1 + MEMORY,
        "memory": _median(_late, last) > (1 + MEMORY) * _median(_late, first),
        "file handles": _most_files(last) > _most_files(first) + FILES,
        "disk use": max(s.disk for s in last) > DISK * max(s.disk for s in first),
        "step time": _pace(last) > PACE * _pace(first),
        "lost checkpoints": any(b.first < a.last for a, b in pairwise(segments)),
    }
    found = ", ".join(what for what, is_so in grown.items() if is_so)
    kills = sum(s.end == "SIGKILL" for s in segments)
    steps = sum(s.last - s.first for s in segments)
    said = f"{steps:,} steps, {len(segments)} segments, {kills} of them ended by SIGKILL"
    return f"{f'NOT flat: {found}' if found else 'flat'} ({said})"


def _late(segment: Segment) -> float:
    return segment.settled()[1]


def _pace(segments: Sequence[Segment]) -> float:
    found = [segment.pace for segment in segments if segment.pace is not None]
    return statistics.median(found) if found else 0


def _most_files(segments: Sequence[Segment]) -> int:
    return max(max(segment.files) for segment in segments)


def _median(of: Callable[[Segment], float], segments: Sequence[Segment]) -> float:
    return statistics.median(map(of, segments))


def main() -> None:
    """Print the table and the verdict."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--segment", type=float, default=75, help="seconds, on average")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print("| | steps | MB early | MB late | open files | MB on disk | CPU ms a step | ended by |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        segments = soak(Path(folder), asked.minutes, asked.segment, asked.seed)
    print(f"\n{verdict(segments)}")


if __name__ == "__main__":
    main()
