"""A folder of flat, memory-mapped arrays, indexed by a token's document and its offset there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

import numpy as np

from kdcore import Batch, RunError, Split
from kdcore_cached.checks import CHECK, check_of_extra, checks_of
from kdcore_cached.kinds import Array, Kind
from kdcore_cached.places import places

META = "meta.json"  # what identifies the values
ABOUT = "about.json"  # the same for the user
_FILL = 1 << 20  # numbers written at a time when a file is created


class Store:
    """A folder with `meta.json`, which identifies the values, and the files of a kind.

    A token's slot is its document's start plus its offset. The folder's name is a hash of the
    metadata, so values of other settings are never read. Several processes and runs may write at
    once: all write the same values, and a slot's mark is written last. Values that do not match
    their checksum count as missing; stores of earlier versions have no checksums.
    """

    def __init__(
        self,
        folder: Path,
        meta: Mapping[str, object],
        split: Split,
        kind: Kind,
        say: Callable[[str], None],
        about: Mapping[str, object] | None = None,
    ) -> None:
        self.kind, self._about, self._say = kind, dict(about or {}), say
        self._starts = np.concatenate([[0], np.cumsum(split.lengths, dtype=np.int64)])
        self._meta = as_text(meta)
        self.folder = folder
        if self.folder.exists() and not self._is_whole():
            say(f"{self.folder} is damaged: it is made anew")
            remove(self.folder)
        if not self.folder.exists():
            self._make()
        self.arrays = [mapped(self.folder, array, self.tokens) for array in kind.arrays]
        hashed = (self.folder / CHECK.file).exists()
        self._checks = mapped(self.folder, CHECK, self.tokens) if hashed else None
        self.extras = [self._mapped_extra(array, say) for array in kind.extras]
        self._extra_checks = [
            self._mapped_extra(check_of_extra(array), say) for array in kind.extras
        ]

    @property
    def tokens(self) -> int:
        """Slots: all tokens of the split."""
        return int(self._starts[-1])

    def slots(self, batch: Batch) -> np.ndarray:
        """The slots of the tokens that the batch's valid positions predict [valid]."""
        document, offset = places(batch)
        slots: np.ndarray = self._starts[document] + offset
        return slots

    def missing(self, slots: np.ndarray) -> np.ndarray:
        """Whether each slot has to be filled [n]."""
        broken = self._broken(slots)
        if broken.any():
            self._say(f"{self.folder}: {broken.sum():,} values are damaged and are made anew")
        found: np.ndarray = self.kind.missing(self.arrays[-1][slots]) | broken
        for more, checks in zip(self.extras, self._extra_checks, strict=True):
            found |= (more[slots] == 0) | self._broken_extra(slots, more, checks)
        return found

    def _broken_extra(self, slots: np.ndarray, more: np.ndarray, checks: np.ndarray) -> np.ndarray:
        """The same for an extra file [n]."""
        values, known = more[slots], checks[slots]
        broken: np.ndarray = (values != 0) & (known != 0) & (known != checks_of(slots, [values]))
        if broken.any():
            self._say(f"{self.folder}: {broken.sum():,} values are damaged and are made anew")
        return broken

    def _broken(self, slots: np.ndarray) -> np.ndarray:
        """Whether a filled slot does not match its checksum [n]."""
        if self._checks is None:
            return np.zeros(len(slots), bool)
        stored = [np.take(array, slots, axis=0) for array in self.arrays]
        there = ~self.kind.missing(stored[-1])
        off: np.ndarray = there & (self._checks[slots] != checks_of(slots, stored))
        return off

    def take(self, slots: np.ndarray) -> list[np.ndarray]:
        """The values of each array at the slots, [n] or [n, width]."""
        return [np.take(array, slots, axis=0) for array in (*self.arrays, *self.extras)]

    def put(self, slots: np.ndarray, values: Sequence[np.ndarray]) -> None:
        """Write the values of each array. Valid slots are left unchanged, to the last bit."""
        new = self.kind.missing(self.arrays[-1][slots]) | self._broken(slots)
        pairs = zip(self.arrays, values, strict=False)
        fresh = [np.asarray(some[new], array.dtype) for array, some in pairs]
        if self._checks is not None:
            self._checks[slots[new]] = checks_of(slots[new], fresh)
        for array, some in zip(self.arrays, fresh, strict=True):
            array[slots[new]] = some
        more = zip(self.extras, self._extra_checks, values[len(self.arrays) :], strict=True)
        for array, checks, given in more:
            some = np.asarray(given, array.dtype)
            checks[slots] = checks_of(slots, [some])
            array[slots] = some

    def _mapped_extra(self, array: Array, say: Callable[[str], None]) -> np.memmap:
        """An extra file, which other runs did not need, created if it is missing or damaged."""
        path = self.folder / array.file
        if path.exists() and not _fits(self.folder, array, self.tokens):
            say(f"{path} is damaged: it is made anew")
            path.unlink()
        if not path.exists():
            partial = self.folder / f".{array.file}-{uuid4().hex}"
            try:
                _reserve(partial, array, self.tokens)
                _appear(partial, path)
            except OSError as error:
                size = array.bytes_per_token * self.tokens
                raise RunError(f"cannot make {path} ({size:,} bytes): {error}") from error
            finally:
                partial.unlink(missing_ok=True)
        return mapped(self.folder, array, self.tokens)

    def _is_whole(self) -> bool:
        meta, hashed = self.folder / META, self.folder / CHECK.file
        if any(path.is_symlink() for path in (self.folder, *self.folder.iterdir())):
            return False  # never write through a link that this store did not make
        arrays = [*self.kind.arrays, *([CHECK] if hashed.exists() else [])]
        sizes_fit = all(_fits(self.folder, each, self.tokens) for each in arrays)
        return sizes_fit and meta.is_file() and meta.read_bytes() == self._meta.encode()

    def _make(self) -> None:
        """Create all missing files, then rename: no process ever sees half a store."""
        partial = self.folder.with_name(f".{self.folder.name}-{uuid4().hex}")
        partial.mkdir(parents=True)
        (partial / META).write_text(self._meta, encoding="utf-8")
        (partial / ABOUT).write_text(json.dumps(self._about, indent=1), encoding="utf-8")
        try:
            for array in (*self.kind.arrays, CHECK):
                _reserve(partial / array.file, array, self.tokens)
            partial.rename(self.folder)
        except OSError as error:
            shutil.rmtree(partial)
            if not self.folder.exists():  # else another process was faster
                size = self.kind.bytes_per_token * self.tokens
                raise RunError(
                    f"cannot make {self.folder} ({size:,} bytes): {error}; once that is fixed, "
                    "the same command resumes"
                ) from error


def as_text(meta: Mapping[str, object]) -> str:
    """The content of `meta.json`."""
    return json.dumps(dict(meta), sort_keys=True, indent=1)


def key_of(meta: str) -> str:
    """The suffix of the folder's name for this `meta.json`."""
    return blake2b(meta.encode(), digest_size=6).hexdigest()


def mapped(folder: Path, array: Array, tokens: int, mode: str = "r+") -> np.memmap:
    """A file of a store, memory-mapped, [tokens] or [tokens, width]."""
    shape: Sequence[int] = (tokens,) if array.width is None else (tokens, array.width)
    return np.memmap(folder / array.file, array.dtype, mode, shape=tuple(shape))  # type: ignore[call-overload, no-any-return]


def remove(folder: Path) -> None:
    """Rename a folder out of the way, then delete it; safe if another process does the same."""
    aside = folder.with_name(f".{folder.name}-{uuid4().hex}")
    with suppress(FileNotFoundError):
        folder.rename(aside)
        aside.unlink() if aside.is_symlink() else shutil.rmtree(aside)


def _appear(made: Path, path: Path) -> None:
    """Rename a file into place, unless another process was faster; its file is then in use."""
    try:
        os.link(made, path)
    except FileExistsError:
        return
    except OSError:  # a file system without links
        if not path.exists():
            made.rename(path)


def _fits(folder: Path, array: Array, tokens: int) -> bool:
    path = folder / array.file
    return path.is_file() and path.stat().st_size == array.bytes_per_token * tokens


def _reserve(path: Path, array: Array, tokens: int) -> None:
    """A file of empty slots, with its disk space allocated.

    Otherwise a full disk would kill a process that writes to the memory map, with no error message.
    """
    with path.open("wb") as file:
        if array.fill == 0 and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, array.bytes_per_token * tokens)
        else:
            numbers = (array.width or 1) * tokens
            for start in range(0, numbers, _FILL):
                some = np.full(min(_FILL, numbers - start), array.fill, array.dtype)
                file.write(some.tobytes())
        file.flush()
        os.fsync(file.fileno())
