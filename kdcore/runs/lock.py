"""One process at a time in a folder: by flock, else by a file that its owner keeps young.

Some network file systems have no flock, and neither has Windows. There a file names host and
process of the owner, who renews its time of change. The folder is free again where the process is
gone from this host, or where nobody renewed it for a minute, by the clock of the file system.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import TextIO
from uuid import uuid4

from kdcore.errors import RunError

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

OWNER = ".owner.json"
RENEW = 10.0  # seconds
GONE = 60.0
_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
_WITHOUT = {
    getattr(errno, name)
    for name in ("ENOLCK", "ENOSYS", "EOPNOTSUPP", "ENOTSUP", "EINVAL")
    if hasattr(errno, name)
}


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep every other process off the folder; the lock goes with the process."""
    with (folder / ".lock").open("w") as file:
        if _flocked(file, folder):
            yield
        else:
            with _owned(folder):
                yield


def _flocked(file: TextIO, folder: Path) -> bool:
    """Whether the file is locked now; False where there is nothing like it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _WITHOUT:
            return False
        if error.errno not in _TAKEN:
            raise
        raise _taken(folder, "another process") from None
    return True


def _taken(folder: Path, who: str) -> RunError:
    return RunError(
        f"{who} is running in {folder}; wait for it, or type --fresh for a second run beside it"
    )


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    path = folder / OWNER
    mine = {"host": socket.gethostname(), "process": os.getpid(), "token": uuid4().hex}
    while not _written(path, mine):
        owner = _read(path)
        if not _is_gone(path, owner):
            process = f"{owner.get('process', '?')} on {owner.get('host', '?')}"
            raise _taken(folder, f"another process ({process}, by {OWNER})")
        with suppress(FileNotFoundError):  # another one saw it too
            aside = path.with_name(f"{OWNER}-{mine['token']}")
            path.rename(aside)
            aside.unlink()
    ended = Event()
    renewing = Thread(target=_renew, args=(path, mine, ended), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        if _read(path) == mine:
            path.unlink(missing_ok=True)


def _written(path: Path, owner: dict[str, object]) -> bool:
    """Whether the owner's file was made by this call."""
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(owner, file)
    except FileExistsError:
        return False
    return True


def _read(path: Path) -> dict[str, object]:
    """Nothing where it is gone, or not written yet."""
    with suppress(OSError, ValueError, TypeError):
        return dict(json.loads(path.read_text("utf-8", "replace")))
    return {}


def _is_gone(path: Path, owner: dict[str, object]) -> bool:
    process = owner.get("process")
    here = owner.get("host") == socket.gethostname() and os.name == "posix"
    if here and isinstance(process, int):
        return not _lives(process)
    probe = path.with_name(f"{OWNER}-{uuid4().hex}")
    probe.touch()
    now = probe.stat().st_mtime  # by the clock that wrote the other one
    probe.unlink()
    try:
        return now - path.stat().st_mtime > GONE
    except FileNotFoundError:
        return True


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _renew(path: Path, mine: dict[str, object], ended: Event) -> None:
    while not ended.wait(RENEW):
        if _read(path) != mine:  # somebody held this process to be gone
            return
        with suppress(OSError):
            os.utime(path)
