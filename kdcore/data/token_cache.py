"""Token caches on disk: verified against their checksum, and rebuilt where damaged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

from kdcore.errors import KdcoreError
from kdcore.files import machine_error, remove_folder, write_whole

_log = logging.getLogger("kdcore")
_SUM = "kdcore-fingerprint.txt"  # of the tokens, next to them; absent in earlier versions


class _Store(Protocol):
    def checksum(self) -> str:
        """A hash of all tokens."""


_Opened = TypeVar("_Opened", bound=_Store)


def verified(opened: Callable[[], _Opened], key: str) -> _Opened:
    """The tokens under a key, which `opened` opens, or makes if there are none.

    All tokens are read for their fingerprint anyway, so comparing it costs nothing. One process at
    a time rebuilds a damaged cache.
    """
    from filelock import FileLock

    folder = _folder(key)
    store = _undamaged(opened, folder)
    if not isinstance(store, str):
        return store
    with FileLock(f"{folder}.lock"):
        store = _undamaged(opened, folder)  # another process may have rebuilt it
        if not isinstance(store, str):
            return store
        _log.warning("the token cache %s is damaged (%s) and is rebuilt", folder, store)
        remove_folder(folder)
        store = opened()
        _error(store, folder)
        return store


def _undamaged(opened: Callable[[], _Opened], folder: Path) -> _Opened | str:
    """The tokens, or how they are damaged."""
    there = folder.is_dir()
    try:
        store = opened()
        return _error(store, folder) or store
    except KdcoreError:
        raise
    except Exception as error:  # files that are not Arrow can break libraries in any way
        if not there or machine_error(error) is not None:
            raise
        return str(error).split("\n")[0]


def caches() -> Path:
    """Where datasets caches what it made."""
    import datasets.config

    return Path(datasets.config.HF_DATASETS_CACHE)


def _folder(key: str) -> Path:
    """The folder in which datasets caches a generator with this fingerprint."""
    return caches() / "generator" / f"default-fingerprint=kdcore-{key}"


def _error(store: _Store, folder: Path) -> str | None:
    """How the tokens differ from those written; for new ones, writes their checksum."""
    path = folder / _SUM
    if path.is_file():
        known = path.read_text("utf-8", "replace").strip()
        return None if known == store.checksum() else "its tokens were changed"
    with suppress(OSError):  # someone else's cache may be read-only
        write_whole(path, store.checksum() + "\n")
    return None
