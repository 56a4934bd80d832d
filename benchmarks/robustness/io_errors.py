"""Let the file system refuse something at a random moment of a run, start it again, and compare.

    python benchmarks/robustness/io_errors.py 300 --results     a table in results/

Two stages with a cached teacher run until the file system refuses what it is asked for the n-th
time: to open, write, sync or rename a file, to make a folder, or any of these, once or from then
on, with EIO, EACCES, ESTALE, EROFS, EMFILE, EDQUOT or ENOSPC. refusals.c, which is compiled and
preloaded, does that below all libraries. The run must end well or with 1, a sentence that says why,
and no traceback. Then the same command must end with the weights and the records of a run that was
refused nothing. Needs Linux and a C compiler.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from forked import command, said
from kills import RESULTS, outcome, prepared, warm

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager

SOURCE = Path(__file__).with_name("refusals.c")
ERRORS = ("EIO", "EACCES", "ESTALE", "EROFS", "EMFILE", "EDQUOT", "ENOSPC")
KINDS = ("open", "write", "sync", "rename", "mkdir")  # as refusals.c has them
ANY = "any"


@dataclass
class Refusal:
    """At the n-th operation of a kind below the folder, an error, once or from then on."""

    folder: str
    kind: str
    last: int = 0  # never
    name: str = "EIO"
    once: bool = True

    def arm(self) -> None:
        """From now on, in this process."""
        kinds = [self.kind == kind or self.kind == ANY for kind in KINDS]
        bits = sum(1 << n for n, wanted in enumerate(kinds) if wanted)
        number = getattr(errno, self.name)
        _preloaded().refuse(self.folder.encode(), bits, self.last, number, not self.once)

    @staticmethod
    def tell() -> None:
        """Leave the counts behind."""
        counts = [_preloaded().touches(n) for n in range(len(KINDS))]
        Path("touches.txt").write_text(" ".join(map(str, counts)))


def _preloaded() -> ctypes.CDLL:
    found = ctypes.CDLL(None)
    integers = (ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_int)
    found.refuse.argtypes = (ctypes.c_char_p, *integers)
    found.touches.restype = ctypes.c_long
    return found


@dataclass
class Report:
    """What was seen."""

    ends: Counter[tuple[str, str]] = field(default_factory=Counter)  # by what was refused, and end
    wrong: list[str] = field(default_factory=list)


def reach(folder: Path, host: PluginManager) -> dict[str, int]:
    """How many operations of each kind a whole run has."""
    counting = Refusal(str(folder), ANY)
    if command(folder, host, ["run", "recipe.toml", "-q"], counting.arm, counting.tell):
        raise SystemExit(said(folder))
    counts = map(int, (folder / "touches.txt").read_text().split())
    found = dict(zip(KINDS, counts, strict=True))
    return found | {ANY: sum(found.values())}


def refuse(count: int, seed: int, folder: Path, host: PluginManager) -> Report:
    """So many refusals, each in a folder of its own."""
    draw, report = random.Random(seed), Report()
    whole = prepared(folder / "whole")
    touches = reach(whole, host)
    expected = outcome(whole)
    for number in range(count):
        own = prepared(folder / str(number))
        kind = draw.choice((*KINDS, ANY))
        last, name = draw.randint(1, touches[kind]), draw.choice(ERRORS)
        refusal = Refusal(str(own), kind, last, name, draw.random() < 0.5)
        end = _end(own, host, refusal, expected)
        for refused in (kind, name):
            report.ends[refused, end.partition(":")[0]] += 1
        if end.startswith("WRONG"):
            report.wrong.append(f"{number}: {refusal}: {end}")
            print(report.wrong[-1], file=sys.stderr, flush=True)
        shutil.rmtree(own)
    return report


def _end(own: Path, host: PluginManager, refusal: Refusal, expected: dict[str, object]) -> str:
    code = command(own, host, ["run", "recipe.toml", "-q"], refusal.arm)
    text = said(own)
    if code not in (0, 1) or "Traceback" in text or (code and not text.strip()):
        return f"WRONG: ended with {code}: {text[-800:]}"
    if command(own, host, ["run", "recipe.toml", "-q"]):
        return f"WRONG: cannot resume: {text} {said(own)[-800:]}"
    found = outcome(own)
    if others := [key for key in {**expected, **found} if expected.get(key) != found.get(key)]:
        now = [found.get(key) for key in others if key.endswith(("files", "checkpoints"))]
        return f"WRONG: {others} differ, {now}: {text[-800:]}"
    return "told with 1, then as if nothing was" if code else "as if nothing was"


def preload() -> None:
    """Start this script again with the compiled refusals before all libraries."""
    if "kdcore-refusals" in os.environ.get("LD_PRELOAD", ""):
        return
    compiler = next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None or sys.platform != "linux":
        raise SystemExit("this needs Linux and a C compiler")
    library = Path(tempfile.mkdtemp(prefix="kdcore-refusals-"), "refusals.so")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    os.environ["LD_PRELOAD"] = str(library)
    os.execv(sys.executable, [sys.executable, *sys.argv])


def table(report: Report) -> str:
    """What was seen, for people."""
    ends = sorted({end for _, end in report.ends})
    lines = [f"| refused | {' | '.join(ends)} |", "|---" * (len(ends) + 1) + "|"]
    for refused in (*KINDS, ANY, *ERRORS):
        counts = (str(report.ends[refused, end]) for end in ends)
        lines.append(f"| {refused} | {' | '.join(counts)} |")
    return "\n".join([*lines, "", *report.wrong])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("count", type=int, nargs="?", default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", action="store_true", help="write the table into results/")
    asked = parser.parse_args(arguments)
    preload()
    folder = Path(tempfile.mkdtemp(prefix="kdcore-io-errors-"))
    report = refuse(asked.count, asked.seed, folder, warm())
    good = asked.count - len(report.wrong)
    text = f"{good} of {asked.count} I/O errors ended well (seed {asked.seed}).\n\n{table(report)}"
    print(text)
    if asked.results:
        head = f"# Injected I/O errors, {date.today()}, {os.cpu_count()} cores\n\n"
        call = f"`python benchmarks/robustness/io_errors.py {asked.count} --seed {asked.seed}`"
        path = RESULTS / f"{date.today()}-io-errors.md"
        path.write_text(f"{head}{call}: {text}".rstrip() + "\n")
    shutil.rmtree(folder)
    shutil.rmtree(Path(os.environ["LD_PRELOAD"]).parent)
    return int(bool(report.wrong))


if __name__ == "__main__":
    raise SystemExit(main())
