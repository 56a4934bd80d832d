"""The stores in a folder, read from their own metadata, without teacher, data or recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from kdcore import UsageError
from kdcore_cached.buckets import Sampled, TopK
from kdcore_cached.checks import CHECK, checks_of
from kdcore_cached.kinds import Array, Kind, Losses
from kdcore_cached.others import first_filled, mass_of_known, others_array, temperatures_in
from kdcore_cached.store import ABOUT, META, key_of, mapped

_SLOTS = 1 << 18  # processed together


def kind_of(meta: Mapping[str, Any], temperatures: Sequence[float] = ()) -> Kind:
    """The kind described by `meta.json`, with files for these temperatures."""
    if meta["kind"] == TopK.name:
        return TopK(meta["k"], meta["vocabulary"], temperatures)
    if meta["kind"] == Sampled.name:
        return Sampled(meta["draws"], meta["seed"], meta["vocabulary"])
    if meta["kind"] == Losses.name:
        return Losses()
    raise UsageError(f"no kind of store is named {meta['kind']!r}")


@dataclass(frozen=True)
class Kept:
    """A store on disk."""

    folder: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        """What identifies it."""
        found: dict[str, Any] = json.loads((self.folder / META).read_text(encoding="utf-8"))
        return found

    @property
    def about(self) -> dict[str, Any]:
        """Information for the user; stores of earlier versions have less."""
        about: dict[str, Any] = {}
        with suppress(OSError, ValueError):  # optional information
            about = dict(json.loads((self.folder / ABOUT).read_text(encoding="utf-8")))
        return {"teacher": self.folder.name.split("-")[0], "data": self.meta["data"][:12]} | about

    def tell(self, **more: object) -> None:
        """Add information for the user."""
        about = json.dumps(self.about | more, indent=1)
        whole = self.folder / f".{ABOUT}-{uuid4().hex}"
        whole.write_text(about, encoding="utf-8")
        whole.replace(self.folder / ABOUT)

    def wanted(self) -> dict[float, int]:
        """Temperature -> the number of ids for a tenth of the mass, where these have less."""
        return {float(at): k for at, k in self.about.get("wanted", {}).items()}

    @cached_property
    def kind(self) -> Kind:
        """What it stores per token."""
        return kind_of(self.meta, temperatures_in(self.folder))

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    @property
    def tokens(self) -> int:
        """The number of slots."""
        mark = self.kind.arrays[-1]
        return (self.folder / mark.file).stat().st_size // mark.bytes_per_token

    def filled(self) -> int:
        """The number of filled slots."""
        return sum(int(there.sum()) for _, there in self._marks())

    def share(self) -> tuple[float, str]:
        """The filled share: of the tokens needed so far, if known, else of all."""
        asked, filled = self.about.get("asked"), self.filled()
        if asked:
            return min(1.0, filled / asked), "of what the rows predict"
        return filled / max(1, self.tokens), "of all tokens"

    def error(self) -> str | None:
        """Why it cannot be read: a torn file, or a name that does not match its content."""
        meta = self.folder / META
        if not meta.is_file():
            return f"{META} is missing"
        try:
            kind, text = self.kind, meta.read_text(encoding="utf-8")
        except (ValueError, KeyError, TypeError, UsageError) as error:
            return f"{META} cannot be read ({error})"
        if not self.folder.name.endswith(f"-{key_of(text)}"):
            return f"{META} was changed: it does not match the folder's name"
        files = (*kind.arrays, *kind.extras)
        if missing := [one.file for one in kind.arrays if not (self.folder / one.file).is_file()]:
            return f"{missing[0]} is missing"
        hashed = [CHECK] if (self.folder / CHECK.file).is_file() else []
        sizes = {
            (self.folder / one.file).stat().st_size / one.bytes_per_token
            for one in (*files, *hashed)
        }
        if len(sizes) > 1 or not all(size.is_integer() for size in sizes):
            return "its files have different lengths: one is truncated"
        return None

    def forget_broken(self, done: Callable[[int], None] = lambda slots: None) -> int:
        """Mark incompletely written slots as missing; return their number.

        `done` receives the number of slots checked so far.
        """
        arrays = [mapped(self.folder, one, self.tokens) for one in self.kind.arrays]
        hashed = (self.folder / CHECK.file).is_file()
        checks = mapped(self.folder, CHECK, self.tokens) if hashed else None
        found = 0
        for start, there in self._marks():
            slots = start + np.flatnonzero(there)
            values = [np.take(array, slots, axis=0) for array in arrays]
            off = self.kind.broken(values, self.meta["vocabulary"])
            if checks is not None:
                off |= checks[slots] != checks_of(slots, values)
            broken = slots[off]
            arrays[-1][broken] = self.kind.forgotten()
            found += len(broken)
            done(len(there))
        return found + sum(self._forget_extra(one) for one in self.kind.extras)

    def _forget_extra(self, array: Array) -> int:
        """The same for an extra file, whose valid numbers are below 0."""
        values, found = mapped(self.folder, array, self.tokens), 0
        for start in range(0, self.tokens, _SLOTS):
            some = values[start : start + _SLOTS]
            torn = ~(some <= 0)
            some[torn] = array.fill
            found += int(torn.sum())
        return found

    def masses(self) -> dict[float, float]:
        """The mean mass of the stored ids, at each temperature that the store has."""
        found = {}
        for at in temperatures_in(self.folder):
            shares = first_filled(mapped(self.folder, others_array(at), self.tokens, "r"))
            if len(shares):
                found[at] = mass_of_known(shares)
        return found

    def _marks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Whether slots are filled, in chunks."""
        marks = mapped(self.folder, self.kind.arrays[-1], self.tokens, "r")
        for start in range(0, self.tokens, _SLOTS):
            yield start, ~self.kind.missing(np.asarray(marks[start : start + _SLOTS]))


def stores_in(caches: Path) -> list[Kept]:
    """All stores of a folder, by name."""
    if not caches.is_dir():
        return []
    folders = sorted(path for path in caches.iterdir() if path.is_dir())
    return [Kept(path) for path in folders if not path.name.startswith((".", "answers-"))]


def find_store(name: str, caches: Path) -> Kept:
    """The store with this path, name, or unique beginning or end of a name."""
    known = stores_in(caches)
    if exact := [one for one in known if one.folder.name == Path(name).name]:
        return exact[0]
    found = [one for one in known if one.folder.name.startswith(name)]
    found = found or [one for one in known if one.folder.name.endswith(f"-{name}")]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(one.folder.name for one in found)
        raise UsageError(f"{name!r} matches several stores: {names}")
    there = ", ".join(one.folder.name for one in known) or "none"
    raise UsageError(f"no store in {caches} is named {name!r}; there are: {there}")
