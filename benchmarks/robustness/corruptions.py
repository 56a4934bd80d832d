"""Corrupt a random file that kdcore wrote, go on, and compare.

    python benchmarks/robustness/corruptions.py 500 --results     a table in results/

A run of three stages, with a cached teacher and with answers that are written, is made once. One
file of a copy (also of its token caches) has a bit flipped, is cut, emptied, doubled, or gets
zeros. Then the command or `kdcore run FOLDER` goes on, after the last stage was lost in part or
wholly, or a verb reads what is there. Weights and scores must be those of the run that nobody
harmed, to the last bit, or the command is refused with 1 or 2 and a sentence; after that `--fresh`
must end with these weights. Anything else is wrong: the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from forked import command, said
from kills import RESULTS, prepared, warm

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager

LOCKS = {".lock"}
READS = (
    ("eval", "{}", "--json"),
    ("eval", "{}", "--json", "--step", "4"),
    ("show",),
    ("show", "{}"),
    ("show", "{}", "--tokens"),
    ("generate", "{}", "--prompt", "Once"),
    ("cache", "ls"),
    ("cache", "verify"),
)
"""Verbs that read a run, {}, or what its teacher said."""


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


def weights(folder: Path) -> bytes:
    """Of the last stage that the command told of."""
    last = (folder / "printed.txt").read_text().splitlines()[-1]
    return (folder / last / "final" / "model.safetensors").read_bytes()


def last_run(folder: Path) -> Path:
    """The last stage's run."""
    (found,) = (folder / "runs").glob("killed.rolled-*")
    return found


@dataclass
class Report:
    """What was seen."""

    ends: Counter[tuple[str, str]] = field(default_factory=Counter)  # by kind of file and end
    wrong: list[str] = field(default_factory=list)


def use(folder: Path, draw: random.Random) -> list[str]:
    """Leave something to do, or a run to read; the arguments that do it."""
    last = last_run(folder)
    how = draw.choice(("anew", "go on", "folder", "finished", "read", "read"))
    if how == "finished":
        return ["run", "recipe.toml", "-q"]
    if how == "read":
        return [each.format(last.relative_to(folder)) for each in draw.choice(READS)]
    if how == "anew":
        shutil.rmtree(last)
        return ["run", "recipe.toml", "-q"]
    shutil.rmtree(last / "final")
    shutil.rmtree(max((last / "checkpoints").iterdir(), key=lambda path: int(path.name[5:])))
    return ["run", "recipe.toml" if how == "go on" else str(last.relative_to(folder)), "-q"]


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
        raise SystemExit(said(template))
    expected = Expected(template, host, weights(template), {})
    for number in range(count):
        own = Path(shutil.copytree(template, folder / str(number)))
        arguments = use(own, draw)
        path, harm = _file(own, draw), draw.choice(HARMS)
        path.write_bytes(harm(bytearray(path.read_bytes()), draw))
        end = _end(own, host, arguments, expected)
        report.ends[_kind(path.relative_to(own)), end.partition(":")[0]] += 1
        if end.startswith("WRONG"):
            what = f"{harm.__name__} {path.relative_to(own)}, {' '.join(arguments)}"
            report.wrong.append(f"{number}: {what}: {end}")
            print(report.wrong[-1], file=sys.stderr, flush=True)
        shutil.rmtree(own)
    return report


def _file(folder: Path, draw: random.Random) -> Path:
    """One that is not empty, each kind as likely as the others."""
    kinds: dict[str, list[Path]] = {}
    for path in files_of(folder):
        if path.stat().st_size:
            kinds.setdefault(_kind(path.relative_to(folder)), []).append(path)
    return draw.choice(kinds[draw.choice(sorted(kinds))])


@dataclass(frozen=True)
class Expected:
    """What a command gives where nobody harmed anything."""

    folder: Path
    host: PluginManager
    weights: bytes
    _scores: dict[str, str]

    def scores(self, arguments: Sequence[str]) -> str:
        """What `kdcore eval` prints."""
        key = " ".join(arguments)
        if key not in self._scores:
            if command(self.folder, self.host, arguments):
                raise SystemExit(said(self.folder))
            self._scores[key] = (self.folder / "printed.txt").read_text()
        return self._scores[key]


def _end(own: Path, host: PluginManager, arguments: Sequence[str], expected: Expected) -> str:
    code = command(own, host, arguments)
    text = said(own)
    if code == 0 and arguments[0] == "run":
        return "the same result" if weights(own) == expected.weights else "WRONG: other weights"
    if code == 0 and arguments[0] == "eval":
        same = (own / "printed.txt").read_text() == expected.scores(arguments)
        return "the same result" if same else "WRONG: other scores"
    if code not in (0, 1, 2) or "Traceback" in text:
        return f"WRONG: ended with {code}: {text[-600:]}"
    if code == 0:
        return "read"
    if command(own, host, ["run", "recipe.toml", "--fresh", "-q"]):
        return f"WRONG: --fresh is no way out: {text} {said(own)[-600:]}"
    if weights(own) != expected.weights:
        return f"WRONG: other weights with --fresh: {text}"
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
    text = f"{good} of {asked.count} corruptions ended well (seed {asked.seed}).\n\n{table(report)}"
    print(text)
    if asked.results:
        head = f"# Corrupted files, {date.today()}, {os.cpu_count()} cores\n\n"
        call = f"`python benchmarks/robustness/corruptions.py {asked.count} --seed {asked.seed}`"
        path = RESULTS / f"{date.today()}-corruptions.md"
        path.write_text(f"{head}{call}: {text}".rstrip() + "\n")
    shutil.rmtree(folder)
    return int(bool(report.wrong))


if __name__ == "__main__":
    raise SystemExit(main())
