"""Tokenised documents, memory-mapped and cached on disk."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from kdcore.data.batch import TextSource
from kdcore.data.columns import StoredColumns, to_text
from kdcore.data.encoding import (
    Document,
    Encoder,
    SpelledCount,
    checked_document,
    documents_of,
    given_ids,
    pair_of,
)
from kdcore.data.token_cache import verified
from kdcore.data.where import column_error
from kdcore.errors import KdcoreError, PluginError, RunError
from kdcore.hashing import digest
from kdcore.terminal.bars import Bar, progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kdcore.data.batch import Row


_CALL = 1 << 16  # characters per tokenizer call, and ids per written portion
_Item = TypeVar("_Item")
_LARGE = 1 << 24  # characters worth starting other processes for, which takes a second
_WRITE = 64  # portions written at once: bounds memory

Places = tuple[np.ndarray, np.ndarray]
"""The part in which each token lies, and its index there."""


class TokenStore:
    """The concatenated ids of documents, in memory-mapped Arrow. Without empty documents."""

    def __init__(
        self,
        parts: Sequence[np.ndarray],
        lengths: np.ndarray,
        labels: Sequence[np.ndarray] | None = None,
        documents: int | None = None,
        columns: StoredColumns | None = None,
    ) -> None:
        self._parts, self._labels = parts, labels
        self.columns = columns  # None: no document has any
        self._begins = np.cumsum([0, *map(len, self._parts)])[:-1]
        self.lengths = lengths.astype(np.int64)  # tokens of each document [documents]
        self.dropped = 0 if documents is None else documents - len(self.lengths)
        self._ends = np.cumsum(self.lengths)
        self._fingerprint: str | None = None

    @classmethod
    def of(cls, dataset: Any, documents: int | None = None) -> TokenStore:
        """Opens what `stored` wrote."""
        table = dataset.data.table
        parts, lengths = (
            [_array(part) for part in table[key].chunks] for key in ("ids", "lengths")
        )
        labels = None
        if "labels" in table.column_names:
            labels = [_array(part) for part in table["labels"].chunks]
        columns = _strings(table["columns"]) if "columns" in table.column_names else None
        return cls(parts, np.concatenate(lengths), labels, documents, columns)

    def checksum(self) -> str:
        """A hash of everything stored; unlike the fingerprint, it includes columns."""
        if self.columns is None:
            return self.fingerprint()
        hashed = digest()
        for columns in self.columns:
            hashed.update(f"{to_text(columns)}\n".encode())
        return f"{self.fingerprint()} {hashed.hexdigest()}"

    def fingerprint(self) -> str:
        """A hash of all tokens, their order, their labels, and document borders."""
        if self._fingerprint is None:
            hashed = digest()
            for part in (*self._parts, *(self._labels or ()), self.lengths):
                hashed.update(part.data)
            self._fingerprint = hashed.hexdigest()
        return self._fingerprint

    def at(self, places: np.ndarray) -> np.ndarray:
        """The ids at these indices into the concatenated documents, int32."""
        part = np.searchsorted(self._begins, places, side="right") - 1
        found = np.empty(len(places), np.int32)
        for n in np.unique(part):
            here = part == n
            found[here] = self._parts[n][places[here] - self._begins[n]]
        return found

    def locate(self, document: np.ndarray, offset: np.ndarray) -> Places:
        """The places of tokens of documents, for `take`."""
        begin = self._ends[document] - self.lengths[document] + offset
        part = np.searchsorted(self._begins, begin, side="right") - 1
        return part.astype(np.int32), (begin - self._begins[part]).astype(np.int32)

    def take(self, places: Places, length: np.ndarray) -> np.ndarray:
        """The concatenated ids of this length at each place, int32."""
        return _taken(self._parts, places, length)

    def take_labels(self, places: Places, length: np.ndarray) -> np.ndarray | None:
        """The labels there; None where every token is trained on."""
        return None if self._labels is None else _taken(self._labels, places, length)


def _taken(parts: Sequence[np.ndarray], places: Places, length: np.ndarray) -> np.ndarray:
    found = zip(places[0].tolist(), places[1].tolist(), length.tolist(), strict=True)
    # A document never spans two parts: portions are written whole.
    return np.concatenate([parts[part][at : at + n] for part, at, n in found])


def tokenise(data: TextSource, split: str, tokenizer: PreTrainedTokenizerBase) -> TokenStore:
    """The texts of a split as ids, from the cache if exactly these texts were tokenised before."""
    encoder = Encoder(data, tokenizer)
    texts = _Texts(data, split, encoder)
    with progress(f"reading {split} texts", unit="characters") as bar:
        key = texts.read(bar)
    if not texts.filled:
        raise RunError(f"data {data} has no text in its {split!r} split")
    texts.spelled.tell(split, texts.filled)

    work: Callable[[Any], dict[str, Any]] = encoder.with_columns if texts.known else encoder

    def portions() -> Iterator[dict[str, np.ndarray]]:
        again = _Texts(data, split, encoder)
        processes = cpu_count() if texts.characters > _LARGE else 1
        items = map(pair_of, again) if texts.known else again
        size: Callable[[Any], int] = _size if texts.known else len
        portions = by_size(items, size)
        with progress(f"tokenising {split} texts", texts.characters, "characters") as bar:
            yield from map_in_order(work, _watched(portions, size, bar), processes)
        if again.key() != key:
            raise PluginError(
                f"data {data.name!r} gave different texts when it was asked again for its "
                f"{split!r} split; texts() must give the same ones each time"
            )

    def opened() -> TokenStore:
        keys = ("ids", "lengths", *(["columns"] if texts.known else []))
        return TokenStore.of(stored(portions, key, keys), texts.documents)

    return verified(opened, key)


def stored(
    portions: Callable[[], Iterator[dict[str, np.ndarray]]], key: str, columns: Sequence[str]
) -> Any:
    """The portions on disk, written if the key has none. Processes may call this concurrently."""
    from datasets import Dataset, Features, List, Value
    from datasets.exceptions import DatasetGenerationError

    kinds = dict.fromkeys(columns, List(Value("int32")))
    if "columns" in columns:
        kinds["columns"] = List(Value("string"))
    try:
        return Dataset.from_generator(
            portions,
            features=Features(kinds),
            fingerprint=f"kdcore-{key}",
            writer_batch_size=_WRITE,
        )
    except DatasetGenerationError as error:
        raise error.__cause__ if isinstance(error.__cause__, KdcoreError) else error from None


class _Texts:
    """The texts of a split, hashed while read. At the end, their key is known."""

    def __init__(self, data: TextSource, split: str, encoder: Encoder) -> None:
        self._data, self._split = data, split
        self._hashed = digest()
        self._hashed.update(encoder.fingerprint().encode())
        self.spelled = SpelledCount(encoder)
        self.documents = self.filled = self.characters = 0
        self.known = False  # whether some documents are more than text

    def __iter__(self) -> Iterator[str | Document]:
        for given in documents_of(self._data, self._split):
            document = checked_document(given, self._data, self._split)
            self.documents += 1
            text, columns = pair_of(document)
            if len(text):
                encoded = text.encode() if isinstance(text, str) else text.tobytes()
                self.filled += 1
                self.characters += len(text)
                self._hashed.update(b"%d " % len(encoded))
                self._hashed.update(encoded)
                if not isinstance(document, str):
                    self.known = True
                    kind = "text" if isinstance(text, str) else "ids"
                    self._hashed.update(f" {kind} {len(columns)} {columns}".encode())
                yield document

    def read(self, bar: Bar) -> str:
        """Read all of them, for their key and for validation."""
        for document in self:
            text, _ = pair_of(document)
            if isinstance(text, str):
                self.spelled.see(text)
            bar.advance(len(text))
        return self.key()

    def key(self) -> str:
        """Identifies the texts that were read, and everything that determines their ids."""
        return self._hashed.hexdigest()


def _size(document: Document) -> int:
    return len(document[0])


def _watched(
    portions: Iterable[list[_Item]], size: Callable[[_Item], int], bar: Bar
) -> Iterator[list[_Item]]:
    """The same, counting each one when the next is requested."""
    for portion in portions:
        yield portion
        bar.advance(sum(map(size, portion)))


def by_size(items: Iterable[_Item], size: Callable[[_Item], int]) -> Iterator[list[_Item]]:
    """Portions by size; at least one, possibly empty, as a file without any has no columns."""
    portion, held = list[_Item](), 0
    for item in items:
        portion.append(item)
        held += size(item)
        if held >= _CALL:
            yield portion
            portion, held = [], 0
    yield portion


def _array(part: Any) -> np.ndarray:
    """Arrow lists of ints as a flat array, without copying."""
    flat: np.ndarray = part.flatten().to_numpy(zero_copy_only=True)
    return flat


def _strings(lists: Any) -> StoredColumns | None:
    """Arrow lists of texts as a flat array, without copying; None if all are empty."""
    import pyarrow as pa
    import pyarrow.compute as pc

    flat = pa.chunked_array([part.flatten() for part in lists.chunks], pa.string())
    return StoredColumns(flat) if pc.sum(pc.binary_length(flat)).as_py() else None


_COLUMNS = ("ids", "labels", "lengths", "columns")


def store_documents(
    data: TextSource, split: str, documents: Callable[[], Iterable[Row]], key: str
) -> TokenStore:
    """Documents on disk; requests them only if the key has none."""
    hashed = digest()
    hashed.update(f"documents 1 {split} {key}".encode())

    def portions() -> Iterator[dict[str, np.ndarray]]:
        checked = _checked(documents(), f"data {data.name!r}: document {{}} of {split!r}")
        with progress(f"tokenising {split} documents", unit="documents") as bar:
            for portion in by_size(checked, lambda row: len(row["ids"])):
                yield _joined(portion)
                bar.advance(len(portion))

    key = hashed.hexdigest()
    return verified(lambda: TokenStore.of(stored(portions, key, _COLUMNS)), key)


def _joined(portion: list[dict[str, Any]]) -> dict[str, Any]:
    nothing = np.empty(0, np.int32)
    flat = {
        key: np.concatenate([nothing, *(row[key] for row in portion)]) for key in ("ids", "labels")
    }
    lengths = np.array([len(row["ids"]) for row in portion], np.int32)
    return flat | {"lengths": lengths, "columns": [row["columns"] for row in portion]}


def _checked(documents: Iterable[Row], which: str) -> Iterator[dict[str, Any]]:
    """The ids and labels of each non-empty document; without labels all of it is trained on."""
    for index, row in enumerate(documents):
        said = which.format(index)
        ids = given_ids(row.get("input_ids"), f"{said} has 'input_ids'")
        given = row.get("labels")
        labels = ids if given is None else given_ids(given, f"{said} has 'labels'")
        if len(ids) != len(labels):
            raise PluginError(f"{said} has {len(labels)} labels for {len(ids)} ids")
        columns = row.get("columns")
        if columns is not None and (problem := column_error(columns)):
            raise PluginError(f"{said} has {problem}")
        if len(ids):
            yield {"ids": ids, "labels": labels, "columns": to_text(columns)}


_Made = TypeVar("_Made")
_AHEAD = 4  # items queued per process ahead of the first result: bounds memory
_work: Callable[[Any], Any]


def cpu_count() -> int:
    """The number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def map_in_order(
    work: Callable[[_Item], _Made], items: Iterable[_Item], processes: int
) -> Iterator[_Made]:
    """Apply `work` to items in forked processes, in order. Only items and results are pickled."""
    if processes < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(work, items)
        return
    waiting: deque[Future[_Made]] = deque()
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _begin, (work,))
    try:
        for item in items:
            waiting.append(pool.submit(_done, item))
            if len(waiting) > _AHEAD * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise RunError("a tokenizer process was killed (out of memory?)") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process has one core
    Thread(target=_end_with_parent, daemon=True).start()


def _done(item: Any) -> Any:
    return _work(item)


def _end_with_parent() -> None:
    """A killed parent cannot notify its children."""
    if parent := multiprocessing.parent_process():
        wait([parent.sentinel])
        os._exit(1)
