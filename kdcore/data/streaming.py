"""Streaming data: windows of documents, with exact resume.

The documents of a window are packed and shuffled like those of a small split. The start of a window
is a few numbers in a checkpoint, so that a resumed run need not read what came before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcore.data.batch import Row, Split, TextSource
from kdcore.data.columns import StoredColumns, labelled
from kdcore.data.encoding import (
    Document,
    Encoder,
    SpelledCount,
    checked_document,
    documents_of,
    pair_of,
)
from kdcore.data.rows import PieceRows, RowDataset, check_block, pack_lengths
from kdcore.data.tokenized import TokenStore, by_size
from kdcore.data.where import Columns
from kdcore.errors import RunError
from kdcore.guard import plugin_errors
from kdcore.hashing import digest, tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


WINDOW = 4096  # rows that are held and shuffled together


@dataclass(frozen=True)
class Place:
    """A place between the documents of a stream, or between rows of a stream of rows."""

    read: int = 0  # documents read before it
    laid: int = 0  # of these, documents that were not empty
    source: Mapping[str, Any] | None = None  # the source's own state at this place, if it has one


class Stream(RowDataset):
    """Rows of unknown number: empty as a sequence, but iterates over all."""

    def __init__(self, split: str, fingerprint: str) -> None:
        nothing = np.empty(0, np.int64)
        self.split, self.lengths = Split(split, fingerprint, nothing), nothing

    def windows(self, start: Place) -> Iterator[tuple[Place, RowDataset]]:
        """The windows from a place on, each with the place after it."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Row]:
        for _, rows in self.windows(Place()):
            yield from rows

    def columns(self) -> Iterable[Columns]:
        """None: unknown for the whole stream. `first_window` knows its own."""
        return ()

    def first_window(self) -> RowDataset:
        """The first rows."""
        for _, rows in self.windows(Place()):
            return rows
        raise RunError(f"the streamed {self.split.name} data is empty")

    def row(self, index: int) -> Row:
        """Not available: rows of a stream have no index."""
        raise RunError(
            f"the {self.split.name} data is streamed, so its rows can only be read in order"
        )


class _Texts(Stream):
    """Texts that are tokenised while streaming."""

    def __init__(
        self, data: TextSource, split: str, tokenizer: PreTrainedTokenizerBase, window: int
    ) -> None:
        self._encoder = Encoder(data, tokenizer)
        made_of = [split, data.fingerprint(), tokenizer_hash(tokenizer), *self._encoder.bos]
        hashed = digest()
        hashed.update(f"stream 1 {' '.join(map(str, made_of))}".encode())
        super().__init__(split, hashed.hexdigest())
        self._data, self._window = data, window * data.block
        self._spelled = SpelledCount(self._encoder)

    def windows(self, start: Place) -> Iterator[tuple[Place, RowDataset]]:
        """Windows of about `window` full rows of documents."""
        texts, place, held = documents_of(self._data, self.split.name), start, _Window()
        for portion in self._portions(_from(texts, start)):
            held.add(self._encoder.with_columns([each for each in portion if len(each[0])]))
            read = place.read + len(portion)
            if held.tokens < self._window:
                place = replace(place, read=read)
                continue
            first = place.laid
            place = Place(read, first + held.documents, _state_of(texts))
            yield place, self._rows_of(held, first)
            held = _Window()
        if held.tokens:
            first = place.laid
            place = Place(place.read, first + held.documents, _state_of(texts))
            yield place, self._rows_of(held, first)

    def _portions(self, documents: Iterator[str | Row]) -> Iterator[list[Document]]:
        portions = by_size(map(self._checked, documents), lambda document: len(document[0]))
        while True:
            with plugin_errors(self._data, "texts"):
                portion = next(portions, None)
            if portion is None:
                return
            yield portion

    def _checked(self, given: str | Row) -> Document:
        document = pair_of(checked_document(given, self._data, self.split.name))
        # The total is unknown, so the first one is reported.
        if not self._spelled.texts and isinstance(document[0], str):
            self._spelled.see(document[0])
            self._spelled.tell(self.split.name, None)
        return document

    def _rows_of(self, held: _Window, first: int) -> RowDataset:
        columns = StoredColumns(held.columns) if any(held.columns) else None
        store = TokenStore(held.parts, np.concatenate(held.lengths), columns=columns)
        return PieceRows(self.split, store, pack_lengths(self._data, store.lengths), first)


class _Window:
    """Collects tokens."""

    def __init__(self) -> None:
        self.parts, self.lengths = list[np.ndarray](), list[np.ndarray]()
        self.columns = list[str]()
        self.tokens = self.documents = 0

    def add(self, made: Mapping[str, Any]) -> None:
        """Add one portion."""
        self.columns += made["columns"]
        self.parts.append(made["ids"])
        self.lengths.append(made["lengths"])
        self.tokens += len(made["ids"])
        self.documents += len(made["lengths"])


def stream_texts(
    data: TextSource, split: str, tokenizer: PreTrainedTokenizerBase, *, window: int = WINDOW
) -> Stream:
    """The texts of a split as a stream of rows, arranged by the options of `data` in windows.

    Stores nothing on disk and at most one window in memory. If `texts` returns an object with
    `state_dict` and `load_state_dict`, such as a streamed data set of `datasets`, a resumed run
    continues from its state; otherwise it reads and skips the texts before.
    """
    check_block(data)
    return _Texts(data, split, tokenizer, window)


class _Cursor:
    """The position in one of several data sets: the current window, and the next row in it.

    Counted rows form one window, in a new random order for each pass.
    """

    def __init__(self, rows: RowDataset, state: Mapping[str, Any], seed: Sequence[int]) -> None:
        self._rows, self._seed = rows, list(seed)
        self.passes, self._index = int(state["passes"]), int(state["index"])
        self._place = Place(**state["place"])
        self._windows = self._opened(self._place)
        self._held: tuple[Place, RowDataset] | None = None

    def _opened(self, place: Place) -> Iterator[tuple[Place, RowDataset]]:
        if isinstance(self._rows, Stream):
            return self._rows.windows(place)
        if place.read:  # all were read
            return iter(())
        count = len(self._rows)
        drawn = np.random.default_rng([*self._seed, self.passes]).permutation(count)
        return iter([(Place(count, count), self._rows.subset(drawn))])

    def next(self) -> Row | None:
        """The next row; None at the end."""
        while True:
            if self._held is None:
                self._held = next(self._windows, None)
                if self._held is None:
                    return None
            behind, window = self._held
            if self._index < len(window):
                self._index += 1
                return window[self._index - 1]
            self._place, self._index, self._held = behind, 0, None

    def again(self) -> None:
        """Start again."""
        self.passes += 1
        self._place, self._index, self._held = Place(), 0, None
        self._windows = self._opened(self._place)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"passes": self.passes, "index": self._index, "place": asdict(self._place)}


_BEGIN: Mapping[str, Any] = {"passes": 0, "index": 0, "place": {}}


class _Held(RowDataset):
    """Rows in memory."""

    def __init__(self, split: Split, rows: Sequence[Row]) -> None:
        self.split, self._made = split, rows
        self.lengths = np.array([len(row["input_ids"]) for row in rows], np.int64)

    def row(self, index: int) -> Row:
        return self._made[index]


class JoinedStream(Stream):
    """Rows of several data sets interleaved, at least one of them a stream."""

    def __init__(
        self,
        split: str,
        members: Mapping[str, RowDataset],
        choose: Callable[[], Iterator[int]],
        *,
        column: str,
        all_exhausted: bool,
        seed: Sequence[int],
        window: int,
    ) -> None:
        self._names, self._members = list(members), list(members.values())
        hashed = digest()
        for member in self._members:
            hashed.update(f"{member.split.fingerprint} ".encode())
        super().__init__(split, hashed.hexdigest())
        self._choose, self._column, self._all = choose, column, all_exhausted
        self._seed, self._window = list(seed), window

    def windows(self, start: Place) -> Iterator[tuple[Place, RowDataset]]:
        """Windows of this many rows, with members in the order of `choose`."""
        state = start.source or {"drawn": 0, "members": [_BEGIN] * len(self._members)}
        cursors = [
            _Cursor(member, each, [*self._seed, n])
            for n, (member, each) in enumerate(zip(self._members, state["members"], strict=True))
        ]
        drawn, read = int(state["drawn"]), start.read
        coming = self._rows(cursors, islice(self._choose(), drawn, None))
        while some := list(islice(coming, self._window)):
            drawn, read = drawn + len(some), read + len(some)
            source = {"drawn": drawn, "members": [each.state_dict() for each in cursors]}
            yield Place(read, read, source), _Held(self.split, some)

    def _rows(self, cursors: Sequence[_Cursor], choices: Iterator[int]) -> Iterator[Row]:
        for n in choices:
            row = cursors[n].next()
            if row is None:
                done = [each.passes > 0 or each is cursors[n] for each in cursors]
                if not self._all or all(done):
                    return
                cursors[n].again()
                row = cursors[n].next()
            if row is None:
                raise RunError(f"the member {self._names[n]!r} has nothing to train on")
            # Documents are not counted: the numbers of members interleave.
            document = np.asarray(row["document"], np.int32) * len(cursors) + n
            yield labelled({**row, "document": document}, self._column, self._names[n])


def _from(items: Any, start: Place) -> Iterator[Any]:
    """The rows after the place."""
    if start.source is not None and hasattr(items, "load_state_dict"):
        items.load_state_dict(dict(start.source))
        return iter(items)
    return islice(items, start.read, None)


def _state_of(items: Any) -> Mapping[str, Any] | None:
    return items.state_dict() if hasattr(items, "state_dict") else None
