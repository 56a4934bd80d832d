"""Streamed texts, and the position reached in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from kdcore import RunError
from kdcore_text.record import Document, check_kept, document_of, no_column, text_of

if TYPE_CHECKING:
    from kdcore_text.source import Source


class StreamedTexts:
    """The non-blank texts of several sources; `keep` selects them by number."""

    def __init__(self, sources: Sequence[Source[Document]], keep: Callable[[int], bool]) -> None:
        self._sources, self._keep = sources, keep
        self._source = self._read = self._within = 0

    def __iter__(self) -> Iterator[Document]:
        while self._source < len(self._sources):
            for document in self._rest():
                number, self._read, self._within = self._read, self._read + 1, self._within + 1
                text = document if isinstance(document, str) else document["text"]
                if self._keep(number) and text.strip():
                    yield document
            self._source, self._within = self._source + 1, 0

    def _rest(self) -> Iterator[Document]:
        source = self._sources[self._source]
        if isinstance(source, StreamedColumn):
            return source.read()
        return islice(source.read(), self._within, None)

    def state_dict(self) -> dict[str, Any]:
        """The position, in numbers and texts that JSON can hold."""
        at = self._sources[self._source] if self._source < len(self._sources) else None
        inner = at.state_dict() if isinstance(at, StreamedColumn) else None
        numbers = {"source": self._source, "read": self._read, "within": self._within}
        return numbers | {"inner": inner}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a position."""
        self._source, self._read = state["source"], state["read"]
        self._within = state["within"]
        at = self._sources[self._source] if self._source < len(self._sources) else None
        if isinstance(at, StreamedColumn) and state["inner"] is not None:
            at.load_state_dict(state["inner"])


class StreamedColumn:
    """A text column of a data set streamed by `datasets`."""

    def __init__(self, dataset: Any, column: str, place: str, keep: Sequence[str] = ()) -> None:
        self._dataset, self._column, self._place, self._keep = dataset, column, place, keep

    def count(self) -> int:
        """Unknown."""
        raise RunError(f"{self._place} is streamed, and its documents cannot be counted")

    def read(self) -> Iterator[Document]:
        """The text of every row; a missing value is an empty text."""
        for row in self._dataset:
            if self._column not in row:
                raise no_column(self._place, self._column, row)
            check_kept(self._keep, row, self._place)
            text = text_of(row[self._column], self._column, self._place)
            yield document_of(text, row, self._keep, self._place)

    def state_dict(self) -> dict[str, Any]:
        """The state of `datasets`: the file, and the row in it."""
        state: dict[str, Any] = self._dataset.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a position."""
        self._dataset.load_state_dict(dict(state))


class Spaced:
    """A share of the numbers from 0 on, evenly spaced: held out from data of unknown size."""

    def __init__(self, share: float) -> None:
        self._share = share

    def __contains__(self, number: object) -> bool:
        assert isinstance(number, int)
        return int((number + 1) * self._share) > int(number * self._share)
