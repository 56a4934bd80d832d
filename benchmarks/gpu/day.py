"""Measures a GPU in one command, on a bare machine without a network.

    make gpu                                       25 minutes at most; again: what is missing
    python benchmarks/gpu/day.py --minutes 9       as much as fits, the most telling parts first
    python benchmarks/gpu/day.py --rehearse        tiny shapes, on a CPU: shows that it runs

Models of the real shapes get random weights; texts are random tokens. Each part is a process of its
own with a time limit, and its result a JSON file as soon as it is done: what fails is recorded and
the next one starts, and a second call does what is missing (`--again`: what failed, too). At the
end one Markdown file lies in benchmarks/results/, and what is below its target is printed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
import traceback
from collections.abc import Mapping
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import report
from parts import Part, parts
from process import forked, started
from world import Skipped, World

ROOT = Path(__file__).resolve().parents[2]
LAST = 20  # seconds under which no part is begun
IMPORTED = (  # by a rehearsal, once, for all of its parts
    *("trials", "bare", "head_table", "kdcore.runs.runner", "accelerate", "datasets"),
    *("kdcore.analysis.plan", "torch.distributed.tensor", "transformers.trainer_utils"),
    *(f"transformers.models.{kind}.modeling_{kind}" for kind in ("gpt2", "llama", "qwen2")),
)


def environment(world: World) -> dict[str, str]:
    """Of every part: this checkout's code, no hub, caches that go with the day's folder."""
    places = [str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(world.made / "datasets"),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def do(world: World, name: str) -> dict[str, Any]:
    """One part, in this process."""
    (part,) = (each for each in parts(rehearse=world.rehearse) if each.name == name)
    try:
        return {"status": "done", "result": part.measure(world)}
    except Skipped as why:
        return {"status": "skipped", "error": str(why)}
    except (Exception, SystemExit):  # whatever it is, it is recorded, and the next part starts
        return {"status": "failed", "error": traceback.format_exc()}


def begin(world: World, part: Part, seconds: float) -> dict[str, Any]:
    """One part in a process of its own; with everything that it started it ends in time."""
    path = report.path_of(world.results, part.name)
    partial, log = path.with_suffix(".partial"), path.with_suffix(".log")
    partial.unlink(missing_ok=True)
    if world.rehearse:
        code = forked(lambda: _write(world, part.name, partial), log, seconds)
    else:
        asked = ["--part", part.name, "--folder", str(world.folder), "--to", str(partial)]
        code = started([__file__, *asked], environment(world), log, seconds)
    if code is None:
        return {"status": "failed", "error": f"it took more than {seconds:.0f} s"}
    if not partial.exists():
        tail = log.read_text()[-2000:]
        return {"status": "failed", "error": f"{tail}\nit ended with {code}"}
    found: dict[str, Any] = json.loads(partial.read_text())
    partial.unlink()
    return found


def _write(world: World, name: str, path: Path) -> None:
    path.write_text(json.dumps(do(world, name)))


def go(world: World, until: float, *, again: bool) -> bool:
    """Every part that has no result yet; whether there was time for all of them."""
    for part in parts(rehearse=world.rehearse):
        path = report.path_of(world.results, part.name)
        if path.exists() and not (again and json.loads(path.read_text())["status"] == "failed"):
            continue
        left = until - time.monotonic()
        if left < LAST:
            return False
        print(f"{part.name} ...", end=" ", flush=True)
        began = time.monotonic()
        found = begin(world, part, min(part.seconds, left))
        taken = time.monotonic() - began
        if left < part.seconds and taken >= left:
            print("no time left for it", flush=True)
            return False
        path.write_text(json.dumps({**found, "seconds": taken}, indent=1))
        why = "" if found["status"] == "done" else f": {report.last_line(found['error'])}"
        print(f"{found['status']}, {taken:.0f} s{why}", flush=True)
    return True


def write(world: World, out: Path) -> Path:
    """The Markdown file, named by the day and the card."""
    names = [part.name for part in parts(rehearse=world.rehearse)]
    results = report.read(world.results, names)
    machine: Mapping[str, Any] = results.get("machine", {}).get("result", {})
    card = "-".join(str(machine.get("card", "unknown")).lower().split())
    today = date.today().isoformat()
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{today}-gpu-{card}.md"
    path.write_text(report.markdown(results, names, today, rehearse=world.rehearse))
    print(f"\n{path}")
    for line in report.below(results) or ["nothing is below its target"]:
        print(line)
    return path


def arguments() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes, on a CPU too")
    parser.add_argument("--again", action="store_true", help="repeat the parts that failed")
    parser.add_argument("--folder", type=Path, help="runs/gpu-day, or runs/gpu-rehearsal")
    parser.add_argument("--out", type=Path, help="benchmarks/results, or of a rehearsal the folder")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    until, asked = time.monotonic(), arguments()
    until += 60 * asked.minutes
    usual = ROOT / "runs" / ("gpu-rehearsal" if asked.rehearse else "gpu-day")
    world = World((asked.folder or usual).resolve(), asked.rehearse)
    if asked.part:
        _write(world, asked.part, asked.to)
        return
    if world.rehearse:
        os.environ |= environment(world) | {"OMP_NUM_THREADS": "1"}
        for name in IMPORTED:
            import_module(name)
        gc.freeze()  # no part looks through what all of them share
    import torch

    if not world.rehearse and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; --rehearse shows that everything runs on a CPU")
    world.results.mkdir(parents=True, exist_ok=True)
    done = go(world, until, again=asked.again)
    write(world, asked.out or (world.folder if asked.rehearse else ROOT / "benchmarks" / "results"))
    if not done:
        print("The time is over; the same command continues with what is missing.")


if __name__ == "__main__":
    main()
