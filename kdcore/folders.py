"""Run folders: one for each stage and identity, never overwritten, one process at a time."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from kdcore.errors import RunError, UsageError
from kdcore.links import refuse_links

FINAL = "final"
MARK = "accepted.json"  # of a run that went on by another recipe than its name tells
CHECKPOINTS = "checkpoints"


def finished(folder: Path) -> bool:
    """Whether the run in this folder reached its end."""
    return (folder / FINAL).is_dir()


def choose_folder(out: Path, run_name: str, identity: str, *, fresh: bool) -> Path:
    """The folder of a run: the newest of its name and identity, with `fresh` the next free one.

    Where there is none, one that finished under another name: identities know no names.
    """
    first = free = out / f"{run_name}-{identity}"
    newest = None
    for n in count(2):
        if not free.exists():
            break
        newest = newest if (free / MARK).exists() else free
        free = out / f"{first.name}-{n}"
    if fresh:
        return free
    return newest or _finished_elsewhere(out, identity) or free


def _finished_elsewhere(out: Path, identity: str) -> Path | None:
    same = re.compile(rf".*-{identity}(-\d+)?")
    found = (path for path in out.glob(f"*-{identity}*") if same.fullmatch(path.name))
    theirs = (path for path in found if finished(path) and not (path / MARK).exists())
    return max(theirs, default=None)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process off the folder; the lock goes with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(
                f"another process is running in {folder}; wait for it, or type --fresh for a "
                "second run beside it"
            ) from None
        yield


def keep_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write what the run is made from, if it is not there yet."""
    for name, text in texts.items():
        if not (folder / name).exists():
            write_whole(folder / name, text)


def write_whole(path: Path, text: str) -> None:
    """Write a text so that whoever reads it meets the old one or the new one, never half of it."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text)
    sync(beside)
    beside.replace(path)


def compare_fingerprints(folder: Path, now: Mapping[str, str], accepted: frozenset[str]) -> None:
    """Refuse to continue a run with other data, tokenizer, teacher or versions than it began with.

    What is accepted by name is taken over as the new state of things.
    """
    path = folder / "fingerprints.json"
    before = _fingerprints(path) if path.exists() else {}
    changed = [name for name in now if name in before and before[name] != now[name]]
    refused = [name for name in changed if name not in accepted]
    if refused:
        said = "; ".join(f"{name}: was {before[name]}, is {now[name]}" for name in refused)
        raise UsageError(
            f"{folder} was begun with something else: {said}. Type --accept "
            f"{','.join(refused)} to go on all the same, or --fresh to begin again"
        )
    write_whole(path, json.dumps(dict(now), indent=1) + "\n")


def _fingerprints(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text("utf-8", "replace"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(
            f"{path} is damaged, so what the run was begun with is not known; remove that file to "
            "go on all the same, or type --fresh to begin again"
        )
    return found


def move_into_place(beside: Path, target: Path) -> None:
    """Rename a folder that was written whole; what stood there goes first."""
    for path in beside.iterdir():
        sync(path)
    sync(beside)
    if target.exists():
        shutil.rmtree(target)
    beside.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
