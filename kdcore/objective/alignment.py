"""Two tokenisations of one text: the finest spans of bytes at whose borders both have one.

A teacher that reads other tokens than the student reads the same bytes in a batch of its own. Each
byte lies in exactly one span; where a span is one token on both sides, both predict the same thing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kdcore.data.batch import Batch, Row, columns_of
from kdcore.data.collate import Collate, on_host, pieces_of
from kdcore.data.encoding import Spelled, own_beginning
from kdcore.data.where import Columns
from kdcore.models.vocabulary import id_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Spans(NamedTuple):
    """For each span the first of its tokens and the one behind its last, on both sides [spans]."""

    first: np.ndarray
    end: np.ndarray
    other_first: np.ndarray
    other_end: np.ndarray

    def shifted(self, by: int, other_by: int) -> Spans:
        """The same, counted from elsewhere."""
        return Spans(
            self.first + by, self.end + by, self.other_first + other_by, self.other_end + other_by
        )

    def one_to_one(self) -> Spans:
        """Those that are one token on both sides."""
        return self.where((self.end - self.first == 1) & (self.other_end - self.other_first == 1))

    def where(self, these: np.ndarray) -> Spans:
        """Some of them, bool [spans]."""
        return Spans(*(each[these] for each in self))

    @staticmethod
    def joined(several: Sequence[Spans]) -> Spans:
        """All of them, one after the other."""
        none = Spans(*[np.empty(0, np.int64)] * 4)
        each = zip(none, *several, strict=True)
        return Spans(*(np.concatenate(side) for side in each))


def common_spans(borders: np.ndarray, others: np.ndarray) -> Spans:
    """Borders in bytes of two tokenisations, [tokens + 1] each from 0 to the end -> their spans.

    Tokens of no bytes are in no span. A border that is -1 is none.
    """
    common = np.intersect1d(borders[borders >= 0], others[others >= 0])
    sides = [(_begins(one, common), _ends(one, common)) for one in (borders, others)]
    (first, end), (other_first, other_end) = sides
    return Spans(first, end, other_first, other_end)


def _begins(borders: np.ndarray, common: np.ndarray) -> np.ndarray:
    """The last token that begins at each: those of no bytes before it begin there too."""
    return np.searchsorted(_rising(borders), common[:-1], side="right") - 1


def _ends(borders: np.ndarray, common: np.ndarray) -> np.ndarray:
    return np.searchsorted(_rising(borders), common[1:], side="left")


def _rising(borders: np.ndarray) -> np.ndarray:
    """With a place between its neighbours for each border that is none: it is never asked for."""
    places = np.where(borders < 0, 0, borders).astype(np.float64)
    rising: np.ndarray = np.where(borders < 0, np.maximum.accumulate(places) + 0.5, places)
    return rising


@dataclass(frozen=True, eq=False)
class Piece:
    """The other side's ids of one isolated piece, and the spans within, counted from its start."""

    ids: Sequence[int] | np.ndarray
    spans: Spans


@dataclass(frozen=True, eq=False)
class RetokenizedBatch:
    """What a student reads, as another tokenizer or in another context.

    Spans hold flat places of tokens: of the student's batch, and of this one. A token is predicted
    at the place before its own.
    """

    batch: Batch  # the other side's
    spans: Spans

    @classmethod
    def of(cls, batch: Batch, pieces: Sequence[Piece], vocabulary: int) -> RetokenizedBatch:
        """Pieces in place of those of `pieces_of(batch)`, in order, isolated and in the same rows.

        Documents keep their columns. `vocabulary` is how many ids the other side's head has.
        """
        starts = [start for start, _ in pieces_of(batch)]
        time, columns = batch.input_ids.shape[1], columns_of(batch)
        rows: list[list[int]] = [[] for _ in range(len(batch.input_ids))]
        for n, start in enumerate(starts):
            rows[start // time].append(n)
        laid = [
            _row([pieces[n] for n in some], [columns.at(starts[n]) for n in some]) for some in rows
        ]
        made = Collate(batch.split, vocabulary, batch.input_ids.device)(laid)
        spans, width = [], made.input_ids.shape[1]
        for place, some in enumerate(rows):
            at = place * width
            for n in some:
                spans.append(pieces[n].spans.shifted(starts[n], at))
                at += len(pieces[n].ids)
        return cls(made, Spans.joined(spans))


def _row(pieces: Sequence[Piece], columns: Sequence[Columns]) -> Row:
    """Pieces end to end, each a document of its own."""
    if not pieces:
        return {"input_ids": [0], "document": [-1], "offset": [-1]}
    counted = np.concatenate([np.arange(len(each.ids)) for each in pieces])
    return {
        "input_ids": np.concatenate([each.ids for each in pieces]),
        "document": np.concatenate([np.full(len(each.ids), n) for n, each in enumerate(pieces)]),
        "offset": counted,
        "position": counted,
        "columns": columns,
    }


Rewrite = Callable[[int, np.ndarray], Piece | None]
"""A piece's first flat position and its ids -> what the other side reads in its place."""


class Retokenizer:
    """Makes another tokenizer's ids of what a student reads."""

    def __init__(self, ours: PreTrainedTokenizerBase, others: PreTrainedTokenizerBase) -> None:
        self.ours, self.others = ours, others
        self.our_bytes, self.other_bytes = id_bytes(ours), id_bytes(others)
        self._special = {int(n) for n in ours.all_special_ids if n is not None} | {
            n for n, each in ours.added_tokens_decoder.items() if each.special
        }
        self._our_prefix, self._other_prefix = _adds_space(ours), _adds_space(others)
        self._beginning = own_beginning(others)
        self._spelled = Spelled(others)

    def __call__(
        self, batch: Batch, vocabulary: int | None = None, rewrite: Rewrite | None = None
    ) -> RetokenizedBatch:
        """The same pieces in the same rows, isolated alike.

        `vocabulary`: how many ids the other side's head has, by default as its tokenizer.
        `rewrite` may put something else in a piece's place. Nothing waits for the device.
        """
        offsets = on_host(batch).offset
        made = [
            (rewrite and rewrite(start, ids)) or self.piece(ids.tolist(), whole=not offsets[start])
            for start, ids in pieces_of(batch)
        ]
        return RetokenizedBatch.of(batch, made, vocabulary or len(self.other_bytes))

    def piece(self, ids: Sequence[int], *, whole: bool) -> Piece:
        """One isolated piece of a document; `whole`: it begins where the document does."""
        made: list[int] = list(self._beginning)
        spans: list[Spans] = []
        at = 0
        for part in self._parts(ids):
            if part[0] in self._special:
                found = self._special_token(part[0])
            else:
                found = self._text(part, begins=whole and not spans)
            spans.append(found.spans.shifted(at, len(made)))
            made += list(found.ids)
            at += len(part)
        return Piece(made or [0], Spans.joined(spans))

    def within(self, ids: Sequence[int], others: Sequence[int], text: str) -> Spans:
        """The spans of a text that both sides' ids spell, with a few bytes more at either end.

        None where one of them spells something else.
        """
        sides = (
            _borders_of(ids, self.our_bytes, text),
            _borders_of(others, self.other_bytes, text),
        )
        (one, first), (other, other_first) = sides
        if not text or not len(one) or not len(other):
            return Spans.joined([])
        return common_spans(one, other).shifted(first, other_first)

    def _parts(self, ids: Sequence[int]) -> Iterator[Sequence[int]]:
        """Texts, and special tokens by themselves."""
        start = 0
        for at, token in enumerate(ids):
            if token in self._special:
                if start < at:
                    yield ids[start:at]
                yield ids[at : at + 1]
                start = at + 1
        if start < len(ids):
            yield ids[start:]

    def _special_token(self, token: int) -> Piece:
        """What the other side has in its place; end tokens stand for each other."""
        other = self.counterparts.get(token)
        if other is None:
            return Piece([], Spans.joined([]))
        none, one = np.zeros(1, np.int64), np.ones(1, np.int64)
        return Piece([other], Spans(none, one, none, one))

    @cached_property
    def counterparts(self) -> dict[int, int]:
        """Our special tokens -> theirs: the end of a text, and what is spelled alike."""
        theirs = self.others.get_vocab()
        names = {n: self.ours.convert_ids_to_tokens(n) for n in self._special}
        found = {n: theirs[name] for n, name in names.items() if name in theirs}
        if self.ours.eos_token_id is not None and self.others.eos_token_id is not None:
            found[int(self.ours.eos_token_id)] = int(self.others.eos_token_id)
        bos = self.ours.bos_token_id
        if bos is not None and bos != self.ours.eos_token_id and self._beginning:
            found.pop(int(bos), None)  # the other side begins by itself
        return found

    def _text(self, ids: Sequence[int], *, begins: bool) -> Piece:
        """Text without special tokens. Half a character at either end is left to nobody."""
        written = [self.our_bytes[token] for token in ids]
        borders = np.cumsum([0, *map(len, written)])
        content = b"".join(written)
        lead = int(begins and self._our_prefix and content.startswith(b" "))
        lead += _broken_start(content[lead:]) if not begins else 0
        text = _whole_characters(content[lead:])
        if not text:
            return Piece([], Spans.joined([]))
        borders = np.clip(borders - lead, 0, None)
        borders[borders > len(text.encode())] = -1
        others, other_borders = self._encoded(text)
        if not others:  # such as spaces alone, to some
            return Piece([], Spans.joined([]))
        return Piece(others, common_spans(borders, other_borders))

    def _encoded(self, text: str) -> tuple[list[int], np.ndarray]:
        """The other side's ids of a text, and where they begin and end in its bytes."""
        careful = self._spelled.has_one(text)
        tokenizer = self._spelled.renamed if careful else self.others
        options = {"split_special_tokens": True} if careful else {}
        found = tokenizer(
            text,
            add_special_tokens=False,
            return_offsets_mapping=tokenizer.is_fast,
            verbose=False,
            **options,
        )
        ids: list[int] = found["input_ids"]
        return ids, self._borders(text, ids, found.get("offset_mapping"))

    def _borders(
        self, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]] | None
    ) -> np.ndarray:
        written = [self.other_bytes[token] for token in ids]
        content, wanted = b"".join(written), text.encode()
        borders: np.ndarray = np.cumsum([0, *map(len, written)])
        if content == wanted:
            return borders
        if self._other_prefix and content == b" " + wanted:
            return (borders - 1).clip(0)
        if offsets is None:
            whole = np.full(len(ids) + 1, -1)
            whole[[0, -1]] = 0, len(wanted)
            return whole
        return _by_characters(text, offsets)


def ids_of_same_bytes(made: Retokenizer, ours: int, others: int) -> Mapping[int, int]:
    """Our ids below `ours` -> the others' below `others` that stand for the same bytes.

    Of special tokens those that stand for each other. Of several ids with the same bytes the first.
    """
    named = {text: n for n, text in reversed([*enumerate(made.other_bytes[:others])]) if text}
    found: dict[int, int] = {}
    taken: set[int] = set()
    for n, text in enumerate(made.our_bytes[:ours]):
        other = named.get(text) if text else made.counterparts.get(n)
        if other is not None and other < others and other not in taken:
            taken.add(other)
            found[n] = other
    return found


def _borders_of(ids: Sequence[int], spelled: Sequence[bytes], text: str) -> tuple[np.ndarray, int]:
    """The borders in a text's bytes of ids around it, and the first token that has one."""
    written = [spelled[each] for each in ids]
    at = b"".join(written).find(text.encode())
    borders = np.cumsum([0, *map(len, written)]) - at
    inside = np.flatnonzero((borders >= 0) & (borders <= len(text.encode())))
    if at < 0 or not len(inside):
        return np.empty(0, np.int64), 0
    return borders[inside[0] : inside[-1] + 1], int(inside[0])


def _by_characters(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Borders in bytes by a tokenizer's offsets in characters; -1 within a character."""
    lengths = [len(letter.encode()) for letter in text]
    at = np.cumsum([0, *lengths])
    ends = np.maximum.accumulate([0, *(end for _, end in offsets)])
    starts = [*(start for start, _ in offsets), len(text)]
    # A token that begins before its neighbour ends shares a character with it.
    borders = np.array(
        [at[end] if start >= end else -1 for start, end in zip(starts, ends, strict=True)]
    )
    borders[[0, -1]] = 0, at[-1]
    return borders


def _adds_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it puts a space before a text, as "▁" does."""
    ids = tokenizer.encode("a", add_special_tokens=False)
    return bool(ids) and b"".join(id_bytes(tokenizer)[n] for n in ids[:1]).startswith(b" ")


def _broken_start(content: bytes) -> int:
    """The bytes at the start that end a character begun elsewhere."""
    count = 0
    while count < len(content) and count < 3 and content[count] & 0xC0 == 0x80:
        count += 1
    return count


def _whole_characters(content: bytes) -> str:
    """The text up to the first bytes that are no characters."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        return content[: error.start].decode()
