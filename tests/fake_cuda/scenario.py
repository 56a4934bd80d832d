"""One process on the fake device, and what it left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_WATCHING = ("-p", str(Path(__file__).with_name("watching.py")))


@dataclass(frozen=True)
class Steps:
    """What the counted steps of a run did on the device."""

    steps: int
    operations: Mapping[str, int]
    waits: Mapping[str, int]  # by file, line and reason
    attention: Mapping[str, int]  # scaled_dot_product_attention's calls by backend

    @property
    def operations_per_step(self) -> float:
        """Without views and allocations."""
        return sum(self.operations.values()) / self.steps

    @property
    def waits_per_step(self) -> float:
        """How often the host waited for the device."""
        return sum(self.waits.values()) / self.steps

    @property
    def attentions_per_step(self) -> float:
        """Calls of attention forward: of all pieces at once, or of the rows beside each other."""
        at_once = self.operations.get("torch_attn._varlen_attn.default", 0)
        return (at_once + sum(self.attention.values())) / self.steps


def python(folder: Path, *arguments: str, **settings: str) -> str:
    """Run the command lines of `fake_cuda` there; what they printed. Each has to end with 0.

    `settings` are environment variables, such as FAKE_CUDA_DEVICES="1".
    """
    printed = folder / "printed.txt"
    asked = {
        "arguments": arguments,
        "folder": str(folder),
        "environment": {
            **_environment(),
            "FAKE_CUDA_REPORT": str(folder / "report.jsonl"),
            "KDCORE_TRACE": "1",
            **settings,
        },
        "printed": str(printed),
    }
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    print(json.dumps(asked), file=server.stdin, flush=True)
    code = server.stdout.readline().strip()
    assert code == "0", printed.read_text()
    return printed.read_text()


def _environment() -> dict[str, str]:
    # An engine with a planted bug is in a copy that comes first.
    paths = [*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT / "tests")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


@cache
def _server() -> subprocess.Popen[str]:
    """Of all tests of this process; it ends with them, as its input does."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "fake_cuda.serving"],
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def on_device(recipe: str, *options: str) -> list[str]:
    """The command that runs a recipe on the device, watched."""
    return ["kdcore", "run", recipe, "-q", "--out", "device", *_WATCHING, *options]


def on_cpu(recipe: str, *options: str) -> list[str]:
    """The same on the CPU."""
    return ["cpu", "kdcore", "run", recipe, "-q", "--out", "cpu", *options]


def sets(**values: object) -> list[str]:
    """`--set` for each; a double underscore is a dot."""
    return [each for key, value in values.items() for each in ("--set", _set(key, value))]


def _set(key: str, value: object) -> str:
    said = str(value).lower() if isinstance(value, bool) else str(value)
    return f"{key.replace('__', '.')}={said}"


def report(folder: Path) -> dict[str, Steps]:
    """What was counted, by the name of the run."""
    lines = (folder / "report.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return {each.pop("stage"): Steps(**each) for each in found}


def records(out: Path) -> dict[str, dict[str, Any]]:
    """The numbers of a run's records, later ones over earlier ones, by the name of the run."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(out.glob("*/metrics.jsonl")):
        numbers = found.setdefault(path.parent.name.rpartition("-")[0], {})
        for line in path.read_text().splitlines():
            numbers |= {k: v for k, v in json.loads(line).items() if isinstance(v, float)}
    return found


def joined(commands: Sequence[Sequence[str]]) -> list[str]:
    """Commands for one process, one after another."""
    return [each for command in commands for each in ("+", *command)][1:]
