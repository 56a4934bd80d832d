"""Token caches on disk: compared with what was written, made anew where they are damaged."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar
from uuid import uuid4

from kdcore.errors import KdcoreError
from kdcore.files import machine_fault, write_whole

_log = logging.getLogger("kdcore")
_SUM = "kdcore-fingerprint.txt"  # of the tokens, beside them; earlier versions wrote none


class _Store(Protocol):
    def checksum(self) -> str:
        """Of all its tokens."""


_Opened = TypeVar("_Opened", bound=_Store)


def verified(opened: Callable[[], _Opened], key: str) -> _Opened:
    """The tokens under a key that `opened` opens, or makes where there are none.

    All tokens are read for their fingerprint anyway, so that comparing it costs nothing.
    """
    folder = _folder(key)
    there = folder.is_dir()
    try:
        store = opened()
        fault = _fault(store, folder)
    except KdcoreError:
        raise
    except Exception as error:  # files that are no Arrow break libraries in any way
        if not there or machine_fault(error) is not None:
            raise
        fault = str(error).split("\n")[0]
    if fault is None:
        return store
    _log.warning("the token cache %s is damaged (%s): it is made anew", folder, fault)
    aside = folder.with_name(f".{folder.name}-{uuid4().hex}")
    folder.rename(aside)
    shutil.rmtree(aside)
    store = opened()
    _fault(store, folder)
    return store


def _folder(key: str) -> Path:
    """Where datasets keeps what a generator of this fingerprint gave."""
    import datasets.config

    caches = Path(datasets.config.HF_DATASETS_CACHE)
    return caches / "generator" / f"default-fingerprint=kdcore-{key}"


def _fault(store: _Store, folder: Path) -> str | None:
    """How the tokens differ from those that were written; of new ones it is noted what they are."""
    path = folder / _SUM
    if path.is_file():
        known = path.read_text("utf-8", "replace").strip()
        return None if known == store.checksum() else "its tokens were changed"
    with suppress(OSError):  # somebody else's cache, which may only be read
        write_whole(path, store.checksum() + "\n")
    return None
