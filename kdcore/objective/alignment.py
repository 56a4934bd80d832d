"""Alignment of two tokenisations of one text: minimal byte spans between common token borders.

A teacher with another tokenizer reads the same bytes in a batch of its own. Each byte belongs
to exactly one span. Where a span is one token on both sides, both predict the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kdcore.data.batch import Batch, Row, columns_of
from kdcore.data.collate import Collate, on_host, pieces_of
from kdcore.data.encoding import own_beginning
from kdcore.data.special import SpecialTokens
from kdcore.data.where import Columns
from kdcore.models.vocabulary import id_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Spans(NamedTuple):
    """Each span's first token and the one after its last, on both sides [spans]."""

    first: np.ndarray
    end: np.ndarray
    other_first: np.ndarray
    other_end: np.ndarray

    def shifted(self, by: int, other_by: int) -> Spans:
        """The spans with token indices shifted."""
        return Spans(
            self.first + by, self.end + by, self.other_first + other_by, self.other_end + other_by
        )

    def one_to_one(self) -> Spans:
        """The spans of one token on both sides."""
        return self.where((self.end - self.first == 1) & (self.other_end - self.other_first == 1))

    def where(self, these: np.ndarray) -> Spans:
        """The spans selected by a mask, bool [spans]."""
        return Spans(*(values[these] for values in self))

    @staticmethod
    def joined(spans: Sequence[Spans]) -> Spans:
        """The concatenation of several."""
        empty = Spans(*[np.empty(0, np.int64)] * 4)
        sides = zip(empty, *spans, strict=True)
        return Spans(*(np.concatenate(side) for side in sides))


def common_spans(borders: np.ndarray, others: np.ndarray) -> Spans:
    """Byte offsets of the borders of two tokenisations, [tokens + 1] each -> their spans.

    Tokens without bytes are in no span. -1 marks a token border that is not a byte offset.
    """
    common = np.intersect1d(borders[borders >= 0], others[others >= 0])
    sides = [(_begins(one, common), _ends(one, common)) for one in (borders, others)]
    (first, end), (other_first, other_end) = sides
    return Spans(first, end, other_first, other_end)


def _begins(borders: np.ndarray, common: np.ndarray) -> np.ndarray:
    """The last token that begins at each common border; earlier ones there have no bytes."""
    return np.searchsorted(_rising(borders), common[:-1], side="right") - 1


def _ends(borders: np.ndarray, common: np.ndarray) -> np.ndarray:
    return np.searchsorted(_rising(borders), common[1:], side="left")


def _rising(borders: np.ndarray) -> np.ndarray:
    """Borders as a sorted array: each -1 gets a value between its neighbours, never matched."""
    places = np.where(borders < 0, 0, borders).astype(np.float64)
    rising: np.ndarray = np.where(borders < 0, np.maximum.accumulate(places) + 0.5, places)
    return rising


@dataclass(frozen=True, eq=False)
class Piece:
    """The other side's ids of one isolated piece, and its spans, relative to its start."""

    ids: Sequence[int] | np.ndarray
    spans: Spans

    def cut(self, longest: int | None) -> Piece:
        """Its first `longest` ids, with the spans that lie in them; None: all of it."""
        if longest is None or len(self.ids) <= longest:
            return self
        return Piece(self.ids[:longest], self.spans.where(self.spans.other_end <= longest))


@dataclass(frozen=True, eq=False)
class RetokenizedBatch:
    """A student's batch in another tokenisation or with another context.

    Spans hold flat token positions in the student's batch and in this one. A token is predicted at
    the position before it.
    """

    batch: Batch  # the other side's batch
    spans: Spans

    @classmethod
    def of(cls, batch: Batch, pieces: Sequence[Piece], vocabulary: int) -> RetokenizedBatch:
        """Replace the pieces of `pieces_of(batch)`, in order, isolated and in the same rows.

        Documents keep their columns. `vocabulary` is the number of ids of the other side's head.
        """
        starts = [start for start, _ in pieces_of(batch)]
        time, columns = batch.input_ids.shape[1], columns_of(batch)
        pieces_in_row: list[list[int]] = [[] for _ in range(len(batch.input_ids))]
        for n, start in enumerate(starts):
            pieces_in_row[start // time].append(n)
        retokenized = [
            _row([pieces[n] for n in numbers], [columns.at(starts[n]) for n in numbers])
            for numbers in pieces_in_row
        ]
        collate = Collate(batch.split, vocabulary, batch.input_ids.device)
        new_batch = collate(retokenized if starts else [])  # an empty batch is not masked
        spans, width = [], new_batch.input_ids.shape[1]
        for row, numbers in enumerate(pieces_in_row):
            at = row * width
            for n in numbers:
                spans.append(pieces[n].spans.shifted(starts[n], at))
                at += len(pieces[n].ids)
        return cls(new_batch, Spans.joined(spans))


def _row(pieces: Sequence[Piece], columns: Sequence[Columns]) -> Row:
    """A row of concatenated pieces, each a document of its own."""
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
"""A piece's first flat position and its ids -> its replacement for the other side, or None."""


class Retokenizer:
    """Converts a student's batches to another tokenizer, with aligned spans."""

    def __init__(self, ours: PreTrainedTokenizerBase, others: PreTrainedTokenizerBase) -> None:
        self.ours, self.others = ours, others
        self.our_bytes, self.other_bytes = id_bytes(ours), id_bytes(others)
        self._special = {int(n) for n in ours.all_special_ids if n is not None} | {
            n for n, each in ours.added_tokens_decoder.items() if each.special
        }
        self._our_prefix = _adds_space(ours, self.our_bytes)
        self._other_prefix = _adds_space(others, self.other_bytes)
        self._beginning = own_beginning(others)
        self._other_special = SpecialTokens(others)

    def __call__(
        self,
        batch: Batch,
        vocabulary: int | None = None,
        rewrite: Rewrite | None = None,
        longest: int | None = None,
    ) -> RetokenizedBatch:
        """The batch in the other tokenisation: the same pieces in the same rows, isolated alike.

        `vocabulary` is the number of ids of the other side's head, by default of its tokenizer.
        `rewrite` may replace a piece. `longest`: the other side reads no more ids of a piece; what
        follows is in no span. Never syncs the device.
        """
        offsets = on_host(batch).offset
        new_pieces = [
            (rewrite and rewrite(start, ids)) or self.piece(ids.tolist(), whole=not offsets[start])
            for start, ids in pieces_of(batch)
        ]
        cut = [piece.cut(longest) for piece in new_pieces]
        return RetokenizedBatch.of(batch, cut, vocabulary or len(self.other_bytes))

    def piece(self, ids: Sequence[int], *, whole: bool) -> Piece:
        """Convert one isolated piece of a document; `whole`: it starts at the document's start."""
        new_ids: list[int] = list(self._beginning)
        spans: list[Spans] = []
        at, begins = 0, whole
        for part in self._parts(ids):
            if begins and not at and part[0] == self.ours.bos_token_id and self._beginning:
                found = Piece([], Spans.joined([]))  # the other side's own stands for it
            elif part[0] in self._special:
                found = self._special_token(part[0])
            else:
                found, begins = self._text(part, begins=begins), False
            spans.append(found.spans.shifted(at, len(new_ids)))
            new_ids += list(found.ids)
            at += len(part)
        return Piece(new_ids or [0], Spans.joined(spans))

    def within(self, ids: Sequence[int], others: Sequence[int], text: str) -> Spans:
        """The spans of a text that both sides' ids contain, possibly with a few bytes around it.

        Empty where one side does not contain it.
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
        """Splits ids into runs of text and single special tokens."""
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
        """The other side's counterpart of a special token; EOS tokens correspond to each other."""
        other = self.counterparts.get(token)
        if other is None:
            return Piece([], Spans.joined([]))
        none, one = np.zeros(1, np.int64), np.ones(1, np.int64)
        return Piece([other], Spans(none, one, none, one))

    @cached_property
    def counterparts(self) -> dict[int, int]:
        """Our special tokens -> theirs: EOS, and tokens with the same spelling."""
        theirs = self.others.get_vocab()
        names = {n: self.ours.convert_ids_to_tokens(n) for n in self._special}
        found = {n: theirs[name] for n, name in names.items() if name in theirs}
        if self.ours.eos_token_id is not None and self.others.eos_token_id is not None:
            found[int(self.ours.eos_token_id)] = int(self.others.eos_token_id)
        bos = self.ours.bos_token_id
        if bos is not None and bos != self.ours.eos_token_id and self._beginning:
            found.pop(int(bos), None)  # the other side adds its own
        return found

    def _text(self, ids: Sequence[int], *, begins: bool) -> Piece:
        """Convert text without special tokens. Partial characters at either end are dropped."""
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
        if not others:  # some tokenizers drop bare spaces
            return Piece([], Spans.joined([]))
        return Piece(others, common_spans(borders, other_borders))

    def _encoded(self, text: str) -> tuple[list[int], np.ndarray]:
        """The other side's ids of a text, and the byte offsets of their borders."""
        careful = self._other_special.has_one(text)
        tokenizer = self._other_special.as_text if careful else self.others
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
        content, encoded = b"".join(written), text.encode()
        borders: np.ndarray = np.cumsum([0, *map(len, written)])
        if content == encoded:
            return borders
        if self._other_prefix and content == b" " + encoded:
            return (borders - 1).clip(0)
        if offsets is None:
            whole = np.full(len(ids) + 1, -1)
            whole[[0, -1]] = 0, len(encoded)
            return whole
        return _by_characters(text, offsets)


def ids_of_same_bytes(retokenizer: Retokenizer, ours: int, others: int) -> Mapping[int, int]:
    """Our ids below `ours` -> the other side's ids below `others` with the same bytes.

    Special tokens map to their counterparts. Of several ids with the same bytes, the first counts.
    """
    named = {
        text: n for n, text in reversed([*enumerate(retokenizer.other_bytes[:others])]) if text
    }
    found: dict[int, int] = {}
    taken: set[int] = set()
    for n, text in enumerate(retokenizer.our_bytes[:ours]):
        other = named.get(text) if text else retokenizer.counterparts.get(n)
        if other is not None and other < others and other not in taken:
            taken.add(other)
            found[n] = other
    return found


def _borders_of(ids: Sequence[int], spelled: Sequence[bytes], text: str) -> tuple[np.ndarray, int]:
    """Byte offsets in a text of the borders of surrounding ids, and the first such token."""
    written = [spelled[each] for each in ids]
    at = b"".join(written).rfind(text.encode())  # what a template writes comes before it
    borders = np.cumsum([0, *map(len, written)]) - at
    inside = np.flatnonzero((borders >= 0) & (borders <= len(text.encode())))
    if at < 0 or not len(inside):
        return np.empty(0, np.int64), 0
    return borders[inside[0] : inside[-1] + 1], int(inside[0])


def _by_characters(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Byte borders from a tokenizer's character offsets; -1 within a character."""
    lengths = [len(letter.encode()) for letter in text]
    at = np.cumsum([0, *lengths])
    ends = np.maximum.accumulate([0, *(end for _, end in offsets)])
    starts = [*(start for start, _ in offsets), len(text)]
    # A token that begins before the previous one ends shares a character with it.
    borders = np.array(
        [at[end] if start >= end else -1 for start, end in zip(starts, ends, strict=True)]
    )
    borders[[0, -1]] = 0, at[-1]
    return borders


def _adds_space(tokenizer: PreTrainedTokenizerBase, spelled: Sequence[bytes]) -> bool:
    """Whether a tokenizer prepends a space to text, as SentencePiece's "▁"."""
    ids = tokenizer.encode("a", add_special_tokens=False)
    return bool(ids) and spelled[ids[0]].startswith(b" ")


def _broken_start(content: bytes) -> int:
    """The number of leading UTF-8 continuation bytes, at most 3."""
    count = 0
    while count < len(content) and count < 3 and content[count] & 0xC0 == 0x80:
        count += 1
    return count


def _whole_characters(content: bytes) -> str:
    """The text up to the first invalid or incomplete UTF-8 sequence."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        return content[: error.start].decode()
