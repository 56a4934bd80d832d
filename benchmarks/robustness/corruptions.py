"""Corrupt a random file that kdcore wrote, go on, and compare.

    python benchmarks/robustness/corruptions.py 500 --results     a table in results/

A run of two stages with a cached teacher is made once. A copy of it loses its last stage, in part
or wholly, and one of its files (also of the token caches) has a bit flipped, is cut, emptied,
doubled, or gets zeros; then the command or `kdcore run FOLDER` goes on. It must end with the
weights of the run that nobody harmed, to the last bit, or be refused with 1 or 2 and a sentence;
after that `--fresh` must end with these weights. Anything else is wrong: the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from kills import HANGS, RESULTS, prepared, warm

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager

LOCKS = {".lock"}


def flip(content: bytearray, draw: random.Random) -> bytearray:
    """One bit."""
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return content


def cut(content: bytearray, draw: random.Random) -> bytearray:
    """The end is gone."""
    return content[: draw.randrange(len(content))]


def zeros(content: bytearray, draw: random.Random) -> bytearray:
    """A page that never reached the disk."""
    at = draw.randrange(len(content))
    size = min(draw.choice((16, 512, 4096)), len(content) - at)
    content[at : at + size] = bytes(size)
    return content


def empty(content: bytearray, draw: random.Random) -> bytearray:
    """Nothing is left."""
    return bytearray()


def double(content: bytearray, draw: random.Random) -> bytearray:
    """Written twice, one behind the other."""
    return content + content


HARMS = (flip, cut, zeros, empty, double)


def nothing() -> None:
    """Neither before nor after."""


def command(
    folder: Path,
    host: PluginManager,
    arguments: Sequence[str],
    before: Callable[[], None] = nothing,
    after: Callable[[], None] = nothing,
) -> int:
    """The command in a fork, whose folder and caches are there; its exit code."""
    child = os.fork()
    if child == 0:
        code = 9
        try:
            code = _child(folder, host, arguments, before, after)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _child(
    folder: Path,
    host: PluginManager,
    arguments: Sequence[str],
    before: Callable[[], None],
    after: Callable[[], None],
) -> int:
    import datasets

    from kdcore.cli import main

    os.chdir(folder)
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    datasets.config.HF_DATASETS_CACHE = folder / "datasets"
    main.plugin_manager = lambda plugins: host
    sys.argv = ["kdcore", *arguments]
    signal.alarm(HANGS)
    before()
    try:
        main.main()
    except SystemExit as out:
        sys.stdout.flush()
        after()
        return int(out.code or 0)
    return 8


def weights(folder: Path) -> bytes:
    """Of the last stage that the command told of."""
    said = (folder / "said.txt").read_text(errors="replace").split("\n")
    (last,) = [line for line in said if line.startswith("runs/")][-1:]
    return (folder / last / "final" / "model.safetensors").read_bytes()


def small(folder: Path) -> Path:
    """The last stage's run."""
    (found,) = (folder / "runs").glob("killed.small-*")
    return found


@dataclass
class Report:
    """What was seen."""

    ends: Counter[tuple[str, str]] = field(default_factory=Counter)  # by kind of file and end
    wrong: list[str] = field(default_factory=list)


def unfinish(folder: Path, draw: random.Random) -> list[str]:
    """Leave something to do; the arguments that do it."""
    last = small(folder)
    how = draw.choice(("anew", "go on", "folder"))
    if how == "anew":
        shutil.rmtree(last)
        return ["run", "recipe.toml"]
    shutil.rmtree(last / "final")
    shutil.rmtree(max((last / "checkpoints").iterdir(), key=lambda path: int(path.name[5:])))
    return ["run", "recipe.toml"] if how == "go on" else ["run", str(last.relative_to(folder))]


def files_of(folder: Path) -> list[Path]:
    """Everything that kdcore wrote."""
    places = (folder / "runs", folder / "datasets")
    found = (path for place in places for path in sorted(place.rglob("*")) if path.is_file())
    return [path for path in found if path.name not in LOCKS and path.suffix != ".lock"]


def corrupt(count: int, seed: int, folder: Path, host: PluginManager) -> Report:
    """So many corruptions, each in a copy of its own."""
    draw, report = random.Random(seed), Report()
    template = prepared(folder / "whole")
    if command(template, host, ["run", "recipe.toml", "-q"]):
        raise SystemExit((template / "said.txt").read_text())
    expected = weights(template)
    for number in range(count):
        own = Path(shutil.copytree(template, folder / str(number)))
        arguments = unfinish(own, draw)
        files = [path for path in files_of(own) if path.stat().st_size]
        path, harm = draw.choice(files), draw.choice(HARMS)
        before = path.read_bytes()
        path.write_bytes(harm(bytearray(before), draw))
        said = f"{number}: {harm.__name__} {path.relative_to(own)}, {' '.join(arguments)}"
        end = _end(own, host, arguments, expected)
        report.ends[_kind(path.relative_to(own)), end.partition(":")[0]] += 1
        if end.startswith("WRONG"):
            report.wrong.append(f"{said}: {end}")
        shutil.rmtree(own)
    return report


def _end(own: Path, host: PluginManager, arguments: Sequence[str], expected: bytes) -> str:
    code = command(own, host, [*arguments, "-q"])
    text = (own / "said.txt").read_text(errors="replace")
    if code == 0:
        return "the same weights" if weights(own) == expected else "WRONG: other weights"
    if code not in (1, 2) or "Traceback" in text:
        return f"WRONG: ended with {code}: {text[-600:]}"
    fresh = ["run", "recipe.toml", "--fresh", "-q"]
    if command(own, host, fresh) or weights(own) != expected:
        return f"WRONG: --fresh is no way out: {text} {(own / 'said.txt').read_text()[-600:]}"
    return "refused, --fresh goes on"


def _kind(path: Path) -> str:
    """What a file is of."""
    if path.parts[0] == "datasets":
        return "token caches"
    kinds = {"caches": "teacher caches", "final": "final", "tokenizer": "tokenizer"}
    kinds["checkpoints"] = "checkpoints"
    return next((kinds[part] for part in path.parts if part in kinds), "the rest of the run folder")


def table(report: Report) -> str:
    """What was seen, for people."""
    ends = sorted({end for _, end in report.ends})
    lines = [f"| file | {' | '.join(ends)} |", "|---" * (len(ends) + 1) + "|"]
    for kind in sorted({kind for kind, _ in report.ends}):
        lines.append(f"| {kind} | {' | '.join(str(report.ends[kind, end]) for end in ends)} |")
    return "\n".join([*lines, "", *report.wrong])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("count", type=int, nargs="?", default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", action="store_true", help="write the table into results/")
    asked = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="kdcore-corruptions-"))
    report = corrupt(asked.count, asked.seed, folder, warm())
    good = asked.count - len(report.wrong)
    said = f"{good} of {asked.count} corruptions ended well (seed {asked.seed}).\n\n{table(report)}"
    print(said)
    if asked.results:
        head = f"# Corrupted files, {date.today()}, {os.cpu_count()} cores\n\n"
        call = f"`python benchmarks/robustness/corruptions.py {asked.count} --seed {asked.seed}`"
        path = RESULTS / f"{date.today()}-corruptions.md"
        path.write_text(f"{head}{call}: {said}".rstrip() + "\n")
    shutil.rmtree(folder)
    return int(bool(report.wrong))


if __name__ == "__main__":
    raise SystemExit(main())
