"""Let the machine refuse something at a random moment of a run, start it again, and compare.

    python benchmarks/robustness/io_errors.py 300 --results     a table in results/

Two stages with a cached teacher run until a file is opened, written, moved or removed for the n-th
time: then that is refused with EIO, EACCES, ESTALE, EROFS, EMFILE, EDQUOT or ENOSPC, once or from
then on. The run must end well or with 1, a sentence that says why, and no traceback. Then the same
command must end with the weights and the records of a run that was refused nothing.
"""

from __future__ import annotations

import argparse
import errno
import io
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
from typing import TYPE_CHECKING, Any

from corruptions import command
from kills import RESULTS, outcome, prepared, warm

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager

ERRORS = ("EIO", "EACCES", "ESTALE", "EROFS", "EMFILE", "EDQUOT", "ENOSPC")


@dataclass
class Refusal:
    """At the n-th touch of a file below the folder, an error, once or from then on; 0: never."""

    folder: str
    last: int
    name: str = "EIO"
    once: bool = True
    seen: int = 0

    def arm(self) -> None:
        """From now on, in this process."""
        self._patch_writes()
        sys.addaudithook(self.audit)

    def tell(self) -> None:
        """Leave the count behind."""
        Path("touches.txt").write_text(str(self.seen))

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """What Python tells an auditor, just before it is done."""
        names = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir")
        if event in (*names, "os.scandir", "os.truncate") and arguments:
            self.touch(arguments[0])

    def touch(self, path: object) -> None:
        """Count it, and refuse it if its time has come."""
        if not isinstance(path, str | os.PathLike):
            return
        place = os.path.abspath(os.fspath(path))
        if not place.startswith(self.folder + os.sep) or place.endswith("said.txt"):
            return
        self.seen += 1
        if self.last and (self.seen == self.last or (self.seen > self.last and not self.once)):
            number = getattr(errno, self.name)
            raise OSError(number, os.strerror(number), str(path))

    def _patch_writes(self) -> None:
        """Writes are not told to auditors: those of Python, of fsync and of safetensors."""
        import safetensors.torch

        from kdcore.training import checkpoint

        opened, synced, saved = io.open, os.fsync, safetensors.torch.save_file
        refusal = self

        class Raw(io.FileIO):
            def write(self, content: Any) -> int:
                refusal.touch(self.name)
                return super().write(content)

        def open_(
            file: Any, mode: str = "r", buffering: int = -1, *more: Any, **options: Any
        ) -> Any:
            if buffering == 0 and isinstance(file, str | os.PathLike):
                return Raw(os.fspath(file), mode.replace("b", ""))
            return opened(file, mode, buffering, *more, **options)

        def fsync(descriptor: int) -> None:
            refusal.touch(os.readlink(f"/proc/self/fd/{descriptor}"))
            synced(descriptor)

        def save_file(tensors: Any, path: Any, *arguments: Any) -> None:
            try:
                refusal.touch(path)
            except OSError as error:
                said = f"Error while serializing: I/O error: {error.strerror}"
                raise RuntimeError(f"{said} (os error {error.errno})") from None
            saved(tensors, path, *arguments)

        io.open, os.fsync, checkpoint.save_file = open_, fsync, save_file  # type: ignore[assignment]


@dataclass
class Report:
    """What was seen."""

    ends: Counter[tuple[str, str]] = field(default_factory=Counter)  # by error and end
    wrong: list[str] = field(default_factory=list)


def reach(folder: Path, host: PluginManager) -> int:
    """How many touches a whole run has."""
    counting = Refusal(str(folder), 0)
    code = command(folder, host, ["run", "recipe.toml", "-q"], counting.arm, counting.tell)
    if code:
        raise SystemExit((folder / "said.txt").read_text())
    return int((folder / "touches.txt").read_text())


def refuse(count: int, seed: int, folder: Path, host: PluginManager) -> Report:
    """So many refusals, each in a folder of its own."""
    draw, report = random.Random(seed), Report()
    whole = prepared(folder / "whole")
    touches = reach(whole, host)
    expected = outcome(whole)
    for number in range(count):
        own = prepared(folder / str(number))
        refusal = Refusal(
            str(own), draw.randrange(1, touches), draw.choice(ERRORS), draw.random() < 0.5
        )
        end = _end(own, host, refusal, expected)
        report.ends[refusal.name, end.partition(":")[0]] += 1
        if end.startswith("WRONG"):
            report.wrong.append(f"{number}: {refusal}: {end}")
        shutil.rmtree(own)
    return report


def _end(own: Path, host: PluginManager, refusal: Refusal, expected: dict[str, object]) -> str:
    code = command(own, host, ["run", "recipe.toml", "-q"], refusal.arm)
    said = (own / "said.txt").read_text(errors="replace")
    if code not in (0, 1) or "Traceback" in said or (code and not said.strip()):
        return f"WRONG: ended with {code}: {said[-800:]}"
    if command(own, host, ["run", "recipe.toml", "-q"]):
        return f"WRONG: cannot go on: {said} {(own / 'said.txt').read_text()[-800:]}"
    found = outcome(own)
    if others := [key for key in expected if expected[key] != found.get(key)]:
        return f"WRONG: {others} differ: {said[-800:]}"
    return "told with 1, then as if nothing was" if code else "as if nothing was"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("count", type=int, nargs="?", default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", action="store_true", help="write the table into results/")
    asked = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="kdcore-io-errors-"))
    report = refuse(asked.count, asked.seed, folder, warm())
    good = asked.count - len(report.wrong)
    ends = sorted({end for _, end in report.ends})
    lines = [f"| error | {' | '.join(ends)} |", "|---" * (len(ends) + 1) + "|"]
    for name in ERRORS:
        lines.append(f"| {name} | {' | '.join(str(report.ends[name, end]) for end in ends)} |")
    table = "\n".join([*lines, "", *report.wrong])
    said = f"{good} of {asked.count} I/O errors ended well (seed {asked.seed}).\n\n{table}"
    print(said)
    if asked.results:
        head = f"# Injected I/O errors, {date.today()}, {os.cpu_count()} cores\n\n"
        call = f"`python benchmarks/robustness/io_errors.py {asked.count} --seed {asked.seed}`"
        path = RESULTS / f"{date.today()}-io-errors.md"
        path.write_text(f"{head}{call}: {said}".rstrip() + "\n")
    shutil.rmtree(folder)
    return int(bool(report.wrong))


if __name__ == "__main__":
    raise SystemExit(main())
