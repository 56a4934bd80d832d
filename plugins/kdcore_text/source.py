"""A source of documents that can be read repeatedly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

_Given = TypeVar("_Given", covariant=True)


class Source(Protocol[_Given]):
    """Documents that can be read repeatedly."""

    def count(self) -> int:
        """The number of documents."""

    def read(self) -> Iterator[_Given]:
        """All documents, in order."""
