"""Checkpoints as folders: which there are, whether one is complete, the files of each process."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from kdcore.checksums import checksum

_log = logging.getLogger("kdcore")
_MANIFEST = "manifest.json"


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint in a folder. Skips damaged ones with a message."""
    there = in_order(folder)
    for path in reversed(there):
        problem = damage(path)
        if problem is None:
            return path
        instead = "the run begins again" if path == there[0] else "the one before is used"
        _log.warning("checkpoint %s is damaged (%s); %s", path.name, problem, instead)
    return None


def of_final(folder: Path) -> Path | None:
    """The checkpoint that a finished run's final weights come from: its best, or its newest."""
    last = newest(folder)
    best = None if last is None else best_of(json.loads((last / "state.json").read_text()))
    return last if best is None else folder / f"step-{best}"


def in_order(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by step."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, key=step_of)


def last_step(folder: Path) -> int:
    """The step of the newest checkpoint in a folder, complete or not; 0 if there is none."""
    found = in_order(folder)
    return step_of(found[-1]) if found else 0


def step_of(path: Path) -> int:
    """The step of a checkpoint, from its folder's name."""
    return int(path.name[5:])


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is complete."""
    try:
        sums = json.loads((path / _MANIFEST).read_text())
        if elsewhere := [name for name in sums if Path(name).name != name]:
            return f"its manifest names {elsewhere[0]!r}, which is not its own file"
        broken = [name for name, known in sums.items() if checksum(path / name) != known]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return str(error)
    return f"{', '.join(broken)} changed" if broken else None


def seal(folder: Path) -> None:
    """Write the checksums of all files, last."""
    sums = {path.name: checksum(path) for path in sorted(folder.iterdir())}
    (folder / _MANIFEST).write_text(json.dumps(sums, indent=1))


def best_of(state: Mapping[str, Any]) -> int | None:
    """The best step at the time of a checkpoint, where it is tracked."""
    best = state.get("best")
    return int(best["step"]) if best else None


def sums_of(path: Path) -> list[dict[str, Tensor]]:
    """The `sums` of each process that wrote a checkpoint, by rank.

    Empty if one is missing, because that process ended abruptly.
    """
    return whole_sums(path, sums_in(path))


def sums_in(path: Path) -> dict[str, dict[str, Tensor]]:
    """By the name of their file."""
    return {each.name: load_file(each) for each in own_files(path, "sums-*.safetensors")}


def whole_sums(path: Path, found: Mapping[str, dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The sums by rank; empty if those of a process are missing."""
    if found and len(found) < json.loads((path / "state.json").read_text()).get("processes", 0):
        return []
    return [found[name] for name in sorted(found, key=lambda each: int(Path(each).stem[5:]))]


def own_files(path: Path, pattern: str) -> list[Path]:
    """Files of single processes, in a checkpoint or next to it."""
    siblings = path.parent.glob(f".{path.name}.process-*")
    places = [path, *(each for each in siblings if damage(each) is None)]
    found = {file.name: file for place in reversed(places) for file in place.glob(pattern)}
    return list(found.values())
