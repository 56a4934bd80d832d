"""Sizes and checksums of files that a run writes once and reads later, compared on opening.

They are in the run folder, next to the files: a copy of `final/` elsewhere is an ordinary model
that anyone may change. Runs of earlier versions have none, and are not checked.
"""

from __future__ import annotations

import hashlib
import json
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

from kdcore.errors import RunError
from kdcore.files import write_whole

CHECKSUMS = "checksums.json"
_FREE = ("README.md", "generation_config.json")  # changes to these affect no result
_log = logging.getLogger("kdcore")


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def keep(folder: Path, name: str, written: Path) -> None:
    """Record a file, or the files of a folder, as `name` in the run folder."""
    found = {"": written} if written.is_file() else {path.name: path for path in written.iterdir()}
    files = sorted((name, path) for name, path in found.items() if name not in _FREE)
    sums = {name: [path.stat().st_size, checksum(path)] for name, path in files}
    known = _known(folder) | {name: sums}
    write_whole(folder / CHECKSUMS, json.dumps(known, indent=1) + "\n")


def damage(place: Path) -> str | None:
    """The first file that is not as the run wrote it, and how; of a run's folder, or the file."""
    sums = _known(place.parent).get(place.name, {})
    found = (_error(place / name, size, known) for name, (size, known) in sums.items())
    return next(filter(None, found), None)


def refuse_changed(place: Path) -> None:
    """Raise RunError for a folder in a run that is not as the run wrote it."""
    if problem := damage(place):
        raise RunError(
            f"{problem}, so {place} is not what the run wrote: --fresh makes a new run next to "
            "it; if the change is intended, copy the folder and name the copy by its path"
        )


def _error(path: Path, size: int, known: str) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    status = path.stat()
    if status.st_size != size:
        return f"{path} has {status.st_size:,} bytes for {size:,}"
    return None if _remembered(path, status.st_mtime_ns) == known else f"{path} was changed"


@lru_cache(maxsize=256)
def _remembered(path: Path, changed: int) -> str:
    """The checksum, cached per process: a model is opened more than once."""
    return checksum(path)


def _known(folder: Path) -> dict[str, Any]:
    path = folder / CHECKSUMS
    if not path.is_file():
        return {}
    try:
        known: Any = json.loads(path.read_text("utf-8", "replace"))
        if all(len(each) == 2 for sums in known.values() for each in sums.values()):
            return dict(known)
    except (ValueError, TypeError, AttributeError):
        pass
    _log.warning("%s is damaged, so the files that it lists are not checked", path)
    return {}
