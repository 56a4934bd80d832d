"""Exclusive access to a folder: by flock, or by a lock file that its owner keeps fresh.

Some network file systems and Windows have no flock. There, a file names host and process of the
owner, who updates its modification time. The lock is stale if the process is gone from this host,
or if the file was not updated for a minute, by the file system's clock.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import TextIO
from uuid import uuid4

from kdcore.errors import RunError, UsageError

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

OWNER = ".owner.json"
RENEW = 10.0  # seconds
GONE = 60.0
_LOOK = 0.5
_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
_WITHOUT = {
    getattr(errno, name)
    for name in ("ENOLCK", "ENOSYS", "EOPNOTSUPP", "ENOTSUP", "EINVAL")
    if hasattr(errno, name)
}


@dataclass(frozen=True)
class Owner:
    """The process that holds a folder."""

    process: int
    host: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"

    def end(self) -> None:
        """Ask it to exit with a checkpoint."""
        if self.host != socket.gethostname():
            raise UsageError(f"{self} runs there: type the same command on {self.host}")
        os.kill(self.process, signal.SIGTERM)


class _TakenError(Exception):
    """Another process holds the folder; the text says which, if known."""

    def __init__(self, owner: Mapping[str, object], by: str = "") -> None:
        self.owner = owner
        who = [f"{owner.get('process', '?')} on {owner.get('host', '?')}"] if owner else []
        details = ", ".join([*who, *([f"by {by}"] if by else [])])
        super().__init__(f" ({details})" if details else "")


@contextmanager
def alone_in(folder: Path, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the folder exclusively; the lock is released when the process ends.

    If another process holds it, this is an error; with `waiting`, calls that once with its
    description, and takes the folder when it is free.
    """
    with ExitStack() as held:
        reported = False
        while True:
            try:
                _take(folder, held)
                break
            except _TakenError as taken:
                if waiting is None:
                    raise RunError(
                        f"another process is running in {folder}{taken}; wait for it, or type "
                        "--fresh for a second run next to it"
                    ) from None
                if not reported:
                    waiting(f"another process is running in {folder}{taken}")
                reported = True
                rest()
        yield


def rest() -> None:
    """Wait between two checks of a folder that another process holds."""
    time.sleep(_LOOK)


def owner_of(folder: Path) -> Owner | None:
    """The process that holds a folder; None if it is free, or the owner is unknown."""
    try:
        with ExitStack() as held:
            _take(folder, held)
            return None
    except _TakenError as taken:
        owner = taken.owner
    process, host = owner.get("process"), owner.get("host")
    return Owner(process, str(host)) if isinstance(process, int) else None


def _take(folder: Path, held: ExitStack) -> None:
    """Hold the lock in the block. Raises _TakenError."""
    file = (folder / ".lock").open("a+")
    try:
        locked = _flocked(file, folder)
    except BaseException:
        file.close()
        raise
    held.callback(file.close)
    if not locked:
        held.enter_context(_owned(folder))
        return
    file.truncate(0)
    json.dump({"host": socket.gethostname(), "process": os.getpid()}, file)
    file.flush()


def _flocked(file: TextIO, folder: Path) -> bool:
    """Whether the file is locked now; False without flock."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _WITHOUT:
            return False
        if error.errno not in _TAKEN:
            raise
        raise _TakenError(_read(folder / ".lock")) from None
    return True


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    path = folder / OWNER
    mine = {"host": socket.gethostname(), "process": os.getpid(), "token": uuid4().hex}
    while not _written(path, mine):
        owner = _read(path)
        if not _is_gone(path, owner):
            raise _TakenError(owner, OWNER)
        with suppress(FileNotFoundError):  # another process removed it first
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
    """Whether this call created the owner's file."""
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(owner, file)
    except FileExistsError:
        return False
    return True


def _read(path: Path) -> dict[str, object]:
    """Empty if it is gone, or not written yet."""
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
        if _read(path) != mine:  # another process considered this one dead
            return
        with suppress(OSError):
            os.utime(path)
