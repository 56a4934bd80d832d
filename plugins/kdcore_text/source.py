"""What documents are read from, again and again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

_Given = TypeVar("_Given", covariant=True)


class Source(Protocol[_Given]):
    """Documents that can be read again and again."""

    def count(self) -> int:
        """How many there are."""

    def read(self) -> Iterator[_Given]:
        """All of them, in order."""
