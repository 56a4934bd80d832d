"""A full disk, however deep the library lies that met it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from kdcore.errors import RunError
from kdcore.folders import CHECKPOINTS

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_IN_TEXT = re.compile(r"\(os error (\d+)\)")  # how libraries in Rust hand an error on


def is_full(error: BaseException) -> bool:
    """Whether there was no room left for a file, by this error or one that led to it."""
    return any(_number(each) in _FULL for each in _chain(error))


def full_disk(error: BaseException, folder: Path) -> RunError:
    """What a person can do about it; `folder` is the run's."""
    from kdcore.checkpoint import in_order

    cause = next(each for each in _chain(error) if _number(each) in _FULL)
    number = _number(cause)
    assert number is not None
    said = os.strerror(number)
    named = getattr(cause, "filename", None)
    where = f" at {named}" if named else ""
    there = in_order(folder / CHECKPOINTS)
    kept = f"checkpoint {there[-1].name} is kept" if there else "there is no checkpoint yet"
    return RunError(
        f"{folder} cannot go on: {said}{where}; {kept}. Make room, and the same command continues; "
        "--set train.save_keep=1 takes least"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = _IN_TEXT.search(str(error))
    return int(found[1]) if found else None
