"""Corrupt a random file that kdcore wrote, go on, and compare.

    python benchmarks/robustness/corruptions.py 500 --results     a table in results/

Three worlds are made once: stages with a cached teacher, a projection of hidden states, answers
that are kept, and components with state; a stage whose student is sharded over two processes; and a
sweep of two arms with two seeds. One file of a copy (also of its token caches) has a bit flipped,
is cut, emptied, doubled, or gets zeros. Then the command or `kdcore run FOLDER` resumes, after a
stage was lost in part or wholly, or a verb reads what is there. The weights of all stages and the
scores must be those of the undamaged runs, to the last bit, or the command is refused with
1 or 2 and a sentence; after that `--fresh` must end with these weights. Anything else is wrong: the
exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from forked import command, said
from kills import RECIPE, RESULTS, warm
from whole_runs import recipe_text  # kills knows where it is

if TYPE_CHECKING:
    from kdcore.plugin.manager import PluginManager

LOCKS = {".lock"}
STAGES = (
    RECIPE
    + """\
[stage.hidden.teacher]
use = "hf"
model = "@big"
[[stage.hidden.loss]]
use = "hidden-mse"
layers = [[1, 1]]
projection = "linear"
[[stage.hidden.loss]]
use = "kl"
[stage.asked.teacher]
use = "hf"
model = "@big"
[stage.asked.rollout]
use = "teacher"
max_new_tokens = 8
prompt_tokens = 6
share = 0.5
"""
)
SMALL = {"name": "killed", "data.stories": 24, "train.steps": 6, "train.eval_rows": 6}
SHARDED = recipe_text(
    {**SMALL, "train.shard": "full", "train.precision": "fp32", "train.micro_batch": 2}, ""
)
SWEPT = recipe_text({**SMALL, "seed": 0}, '[sweep]\nseed = [0, 1]\n"train.lr" = [0.01, 0.02]\n')
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
COMPARING = (
    ("compare", "killed.*", "--json"),
    ("report", "killed.*", "--html", "report.html"),
    ("show", "killed.*"),
    ("sweep", "recipe.toml", "--dry-run"),
)
"""Verbs that read all runs of a sweep."""


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


@dataclass(frozen=True)
class World:
    """What is made once: a recipe, the command that runs it, and verbs that read its runs."""

    name: str
    recipe: str
    command: Sequence[str]
    reads: Sequence[Sequence[str]]

    def made(self, folder: Path, host: PluginManager) -> Expected:
        """The undamaged runs."""
        folder.mkdir(parents=True)
        (folder / "recipe.toml").write_text(self.recipe)
        if command(folder, host, self.command):
            raise SystemExit(said(folder))
        return Expected(self, folder, host, weights(folder), {})


WORLDS = (
    World("stages", STAGES, ["run", "recipe.toml", "-q"], READS),
    World("sharded", SHARDED, ["run", "recipe.toml", "-q", "--processes", "2"], READS[:4]),
    World("sweep", SWEPT, ["sweep", "recipe.toml"], COMPARING),
)
TURNS = (0, 0, 1, 0, 0, 2)
"""Worlds of one corruption after another."""


def runs_of(folder: Path) -> list[Path]:
    """The run folders of all stages and points."""
    return sorted(path.parent for path in (folder / "runs").glob("killed*/recipe.toml"))


def weights(folder: Path) -> dict[str, bytes]:
    """The final weights of the stages that the last command printed, or else of all runs."""
    lines = (folder / "printed.txt").read_text().splitlines()
    printed = [folder / line for line in lines if (folder / line / "final").is_dir()]
    return {
        re.sub(r"-\d$", "", path.name): (path / "final" / "model.safetensors").read_bytes()
        for path in printed or runs_of(folder)
    }


@dataclass
class Report:
    """What was seen."""

    ends: Counter[tuple[str, str]] = field(default_factory=Counter)  # by kind of file and end
    wrong: list[str] = field(default_factory=list)


def use(folder: Path, world: World, draw: random.Random) -> list[str]:
    """Leave something to do, or a run to read; the arguments that do it."""
    run = draw.choice([path for path in runs_of(folder) if ".big" not in path.name])
    how = draw.choice(("anew", "go on", "folder", "finished", "read", "read"))
    if how == "finished":
        return [*world.command]
    if how == "read":
        return [each.format(run.relative_to(folder)) for each in draw.choice(world.reads)]
    if how == "anew" and world.name != "sharded":
        shutil.rmtree(run)
        return [*world.command]
    shutil.rmtree(run / "final")
    shutil.rmtree(max((run / "checkpoints").iterdir(), key=lambda path: int(path.name[5:])))
    if how == "folder" and world.name == "stages":
        return ["run", str(run.relative_to(folder)), "-q"]
    return [*world.command]


def files_of(folder: Path) -> list[Path]:
    """Everything that kdcore wrote."""
    places = (folder / "runs", folder / "datasets")
    found = (path for place in places for path in sorted(place.rglob("*")) if path.is_file())
    return [path for path in found if path.name not in LOCKS and path.suffix != ".lock"]


def corrupt(
    count: int, seed: int, folder: Path, host: PluginManager, tell: Callable[[Report], None]
) -> Report:
    """So many corruptions, each in a copy of its own; `tell` hears of each."""
    draw, report = random.Random(seed), Report()
    worlds = [world.made(folder / world.name, host) for world in WORLDS]
    for number in range(count):
        expected = worlds[TURNS[number % len(TURNS)]]
        own = Path(shutil.copytree(expected.folder, folder / str(number), symlinks=True))
        arguments = use(own, expected.world, draw)
        path, harm = _file(own, draw), draw.choice(HARMS)
        path.write_bytes(harm(bytearray(path.read_bytes()), draw))
        end = _end(own, host, arguments, expected)
        report.ends[_kind(path.relative_to(own)), end.partition(":")[0]] += 1
        if end.startswith("WRONG"):
            what = f"{harm.__name__} {path.relative_to(own)}, {' '.join(arguments)}"
            report.wrong.append(f"{number}: {what}: {end}")
            print(report.wrong[-1], file=sys.stderr, flush=True)
        else:
            shutil.rmtree(own)
        tell(report)
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
    """The result of a command on undamaged files."""

    world: World
    folder: Path
    host: PluginManager
    weights: dict[str, bytes]
    _printed: dict[str, str]

    def printed(self, arguments: Sequence[str]) -> str:
        """What a verb prints."""
        key = " ".join(arguments)
        if key not in self._printed:
            if command(self.folder, self.host, arguments):
                raise SystemExit(said(self.folder))
            self._printed[key] = (self.folder / "printed.txt").read_text()
        return self._printed[key]

    def same_weights(self, own: Path) -> bool:
        """Whether the stages that the last command printed have the right ones."""
        found = weights(own)
        return bool(found) and all(self.weights.get(key) == each for key, each in found.items())


def _end(own: Path, host: PluginManager, arguments: Sequence[str], expected: Expected) -> str:
    code = command(own, host, arguments)
    text = said(own)
    if code not in (0, 1, 2) or "Traceback" in text:
        return f"WRONG: ended with {code}: {text[-600:]}"
    if code == 0 and arguments[0] in ("run", "sweep") and "--dry-run" not in arguments:
        return "the same result" if expected.same_weights(own) else "WRONG: other weights"
    if code == 0 and arguments[0] == "eval":
        same = (own / "printed.txt").read_text() == expected.printed(arguments)
        return "the same result" if same else "WRONG: other scores"
    if code == 0:
        return "read"
    if expected.world.name == "sweep":  # its way out is the run's
        return "refused, --fresh goes on" if text.strip() else "WRONG: no sentence"
    if command(own, host, [*expected.world.command, "--fresh"]):
        return f"WRONG: --fresh is no way out: {text} {said(own)[-600:]}"
    if not expected.same_weights(own):
        return f"WRONG: other weights with --fresh: {text}"
    return "refused, --fresh goes on"


def _kind(path: Path) -> str:
    """What a file is of."""
    if path.parts[0] == "datasets":
        return "token caches"
    if path.name.startswith("shard-"):
        return "parts of sharded checkpoints"
    if path.name.startswith("components"):
        return "state of components and projections"
    if path.name.startswith("answers") or "answers-" in str(path):
        return "answers that are kept"
    if path.parts[1] in ("sweep.json", ".sweep"):
        return "state of sweeps"
    kinds = {"caches": "teacher caches", "final": "final", "tokenizer": "tokenizer"}
    kinds |= {"checkpoints": "checkpoints", "documents": "losses of documents"}
    return next((kinds[part] for part in path.parts if part in kinds), "the rest of the run folder")


def table(report: Report, seed: int) -> str:
    """What was seen, for people."""
    count = report.ends.total()
    good = count - len(report.wrong)
    head = f"{good} of {count} corruptions ended well (seed {seed})."
    ends = sorted({end for _, end in report.ends})
    lines = [f"| file | {' | '.join(ends)} |", "|---" * (len(ends) + 1) + "|"]
    for kind in sorted({kind for kind, _ in report.ends}):
        lines.append(f"| {kind} | {' | '.join(str(report.ends[kind, end]) for end in ends)} |")
    return "\n".join([head, "", *lines, "", *report.wrong])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("count", type=int, nargs="?", default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", action="store_true", help="write the table into results/")
    asked = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="kdcore-corruptions-"))

    def tell(report: Report) -> None:
        """So that a benchmark that is stopped leaves what it saw."""
        if asked.results:
            head = f"# Corrupted files, {date.today()}, {os.cpu_count()} cores\n\n"
            call = (
                f"`python benchmarks/robustness/corruptions.py {asked.count} --seed {asked.seed}`"
            )
            path = RESULTS / f"{date.today()}-corruptions.md"
            path.write_text(f"{head}{call}: {table(report, asked.seed)}".rstrip() + "\n")

    report = corrupt(asked.count, asked.seed, folder, warm(), tell)
    print(table(report, asked.seed))
    shutil.rmtree(folder)
    return int(bool(report.wrong))


if __name__ == "__main__":
    raise SystemExit(main())
