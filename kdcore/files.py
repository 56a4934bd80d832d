"""Atomic writes, fsync, and errors of the machine: full, broken and closed files."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4


def write_whole(path: Path, text: str) -> None:
    """Write a text atomically: readers see the old or the new one, never part of it."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text)
        sync(partial)
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def move_into_place(source: Path, target: Path) -> None:
    """Rename a completely written folder to its place, replacing what is there."""
    for path in source.iterdir():
        sync(path)
    sync(source)
    if target.exists():
        shutil.rmtree(target)
    source.rename(target)
    sync(target.parent)


def remove_folder(folder: Path) -> None:
    """Rename a folder out of the way, then delete it; safe if another process does the same."""
    aside = folder.with_name(f".{folder.name}-{uuid4().hex}")
    with suppress(FileNotFoundError):
        folder.rename(aside)
        aside.unlink() if aside.is_symlink() else shutil.rmtree(aside)


def sync(path: Path) -> None:
    """fsync a file or folder."""
    windows = os.name == "nt"  # which cannot fsync folders, and needs files open for writing
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
_OPEN = {errno.EMFILE, errno.ENFILE}
_BROKEN = {
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ENXIO", "ENODEV", "EREMOTEIO", "ENOTCONN", "EHOSTDOWN")
    if hasattr(errno, name)
}
_WITHOUT_LOCKS = {
    getattr(errno, name) for name in ("ENOLCK", "EOPNOTSUPP", "ENOTSUP") if hasattr(errno, name)
}
# How Rust libraries report OS errors, and libraries that collect several: copytree, Arrow.
_IN_TEXT = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)


def is_full(error: BaseException) -> bool:
    """Whether this error, or one in its chain, says that the disk is full."""
    return any(error_number(each) in _FULL for each in exception_chain(error))


def machine_error(error: BaseException) -> BaseException | None:
    """The OS error in an exception chain.

    Of several, the first with a path.
    """
    known = _FULL | _REFUSED | _OPEN | _BROKEN | _WITHOUT_LOCKS
    found = [each for each in exception_chain(error) if error_number(each) in known]
    named = (each for each in found if getattr(each, "filename", None))
    return next(named, found[0] if found else None)


def refusal(problem: BaseException) -> tuple[str, str]:
    """What the machine refused and where, and what the user can do."""
    number = error_number(problem)
    assert number is not None
    named = getattr(problem, "filename", None)
    said = os.strerror(number) + (f" at {named}" if named else "")
    if number in _FULL:
        way = "make room"
    elif number in _OPEN:
        way = "allow more open files (ulimit -n 4096)"
    elif number == errno.ENOTDIR:
        way = "a part of that path is a file: move it away, or name another place"
    elif number in _REFUSED:
        way = "let this user write there, or name another place"
    elif number in _WITHOUT_LOCKS:
        way = (
            "that file system has no flock: HF_HOME=FOLDER before the command keeps the libraries' "
            "caches elsewhere, such as on a local disk"
        )
    else:
        way = "see whether that disk is well and still mounted"
    if number in _REFUSED | _FULL and named and Path(named).is_relative_to(Path.home() / ".cache"):
        way += "; HF_HOME=FOLDER before the command keeps the libraries' caches elsewhere"
    return said, way


def exception_chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, nearest first, each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def error_number(error: BaseException) -> int | None:
    """The errno of an error."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _IN_TEXT.search(str(error))
    return int(found[1] or found[2]) if found else None
