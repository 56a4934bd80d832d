"""Match records to documents and their entries to tokens, and verify the match."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kdcore import RunError

_LOOKED_AT = 4000  # tokens sampled to verify that records belong to these documents
_ENOUGH = 50  # of them expected among their ids, at least, for a conclusion
_FEW = 0.25  # of the expected hits; fewer is an error

Ids = Callable[[np.ndarray], np.ndarray]
"""Indices counted through all documents of a split -> the ids there."""


@dataclass(frozen=True, eq=False)
class Records:
    """The contents of a file, one record after another."""

    ids: np.ndarray  # int32 [entries, k]
    logs: np.ndarray  # float32 [entries, k + 1]
    begins: np.ndarray  # int64 [records + 1]: where the entries of each record begin
    tokens: np.ndarray | None  # int32, of all records; None: the file has no tokens
    token_begins: np.ndarray  # int64 [records + 1]
    where: Callable[[int], str]  # a record's location, for messages


@dataclass(frozen=True, eq=False)
class Match:
    """For each document of a split: the first entry of its record, and the token it describes."""

    starts: np.ndarray  # int64 [documents]: the document's first token, counted over the split
    entry: np.ndarray  # int64 [documents]
    first: np.ndarray  # int64 [documents]: the index of that token in the document
    count: np.ndarray  # int64 [documents]: number of entries

    def entries(self, document: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """The entry of each token, counted over all records, or -1 [n]."""
        at = offset - self.first[document]
        there = (at >= 0) & (at < self.count[document])
        found: np.ndarray = np.where(there, self.entry[document] + at, -1)
        return found


def match(
    records: Records, of: Sequence[int], lengths: np.ndarray, ids: Ids, *, follows: bool, part: bool
) -> Match:
    """Match record `of[d]` to document d, whose tokens are `ids` and whose length is `lengths[d]`.

    `follows`: an entry describes the token after it. `part`: a record may cover only the last
    tokens.
    """
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    record = np.asarray(of, np.int64)
    count = np.diff(records.begins)[record] if len(record) else record
    if records.tokens is None:
        first = _by_length(records, record, count, lengths, follows=follows, part=part)
    else:
        first = _by_tokens(records, record, count, starts, ids, follows=follows)
    found = Match(starts[:-1], records.begins[record], first, count)
    _prove(records, found, record, lengths, ids)
    return found


def _by_length(
    records: Records,
    record: np.ndarray,
    count: np.ndarray,
    lengths: np.ndarray,
    *,
    follows: bool,
    part: bool,
) -> np.ndarray:
    """The token that a record's first entry describes, derived from the number of entries."""
    fits = (count == lengths) | (count == lengths - 1) | (part & (count < lengths))
    if not fits.all():
        n = int(np.flatnonzero(~fits)[0])
        raise RunError(
            f"{records.where(int(record[n]))} has {count[n]} positions, and document {n + 1} "
            f"of the data has {lengths[n]} tokens: records and documents should be the same texts, "
            "in one order and one tokenizer; a column of the records' own ids, named as `tokens`, "
            "says where they differ"
        )
    whole = np.full(len(count), 1 if follows else 0)
    return np.where(count == lengths, whole, lengths - count)


def _by_tokens(
    records: Records,
    record: np.ndarray,
    count: np.ndarray,
    starts: np.ndarray,
    ids: Ids,
    *,
    follows: bool,
) -> np.ndarray:
    """The same, by comparing each record's tokens with the document's."""
    assert records.tokens is not None
    first = np.zeros(len(record), np.int64)
    for n, one in enumerate(record.tolist()):
        theirs = records.tokens[records.token_begins[one] : records.token_begins[one + 1]]
        ours = ids(np.arange(starts[n], starts[n + 1]))
        shift = _shift(ours, theirs)
        if shift is None:
            raise RunError(_otherwise(records.where(one), n, ours, theirs))
        if count[n] not in (len(theirs), len(theirs) - 1):
            raise RunError(
                f"{records.where(one)} has {count[n]} positions and {len(theirs)} tokens"
            )
        first[n] = shift + (1 if follows or count[n] < len(theirs) else 0)
    return first


def _shift(ours: np.ndarray, theirs: np.ndarray) -> int | None:
    """The number of document tokens before the record's first: 0, or 1 (a bos).

    The document may have one more token at its end.
    """
    for shift in (0, 1):
        end = shift + len(theirs)
        if 0 <= len(ours) - end <= 1 and np.array_equal(ours[shift:end], theirs):
            return shift
    return None


def _otherwise(where: str, document: int, ours: np.ndarray, theirs: np.ndarray) -> str:
    both = min(len(ours), len(theirs))
    apart = np.flatnonzero(ours[:both] != theirs[:both])
    said = f"{where} has {len(theirs)} tokens, and document {document + 1} of the data {len(ours)}"
    if len(apart):
        at = int(apart[0])
        said += f"; token {at + 1} is {theirs[at]} there and {ours[at]} here"
    return (
        f"{said}: records and documents should be the same texts, in one order and one tokenizer; "
        "`key` matches them by a column instead of by order"
    )


def _prove(
    records: Records, found: Match, record: np.ndarray, lengths: np.ndarray, ids: Ids
) -> None:
    """Verify that the text's own tokens are among the ids about as often as the masses predict."""
    if not len(record):
        return
    few = np.flatnonzero(np.cumsum(lengths) <= max(_LOOKED_AT, lengths[0]))
    document = np.repeat(few, lengths[few])
    offset = np.concatenate([np.arange(lengths[n]) for n in few])
    labels = ids(found.starts[document] + offset)
    hits = {by: _hits(records, found, document, offset, labels, by) for by in (0, 1, -1)}
    promised, came = hits[0]
    if promised < _ENOUGH or came >= _FEW * promised:
        return
    near = next((by for by in (1, -1) if hits[by][1] >= _FEW * hits[by][0]), None)
    if near is None and records.tokens is not None:
        return  # verified by the tokens: a model may be confident and wrong
    where = {1: "own", -1: "next"}
    way = (
        "the records are of other texts, in another order, or of another tokenizer; a column of "
        "the records' own ids, named as `tokens`, proves that they are not"
        if near is None
        else f'the entries are of the neighbouring tokens: set position = "{where[near]}"'
    )
    raise RunError(
        f"from {records.where(int(record[0]))} on, {came:.0f} of the texts' own tokens are among "
        f"the ids of their positions where their masses promise {promised:.0f}: {way}"
    )


def _hits(
    records: Records,
    found: Match,
    document: np.ndarray,
    offset: np.ndarray,
    labels: np.ndarray,
    by: int,
) -> tuple[float, float]:
    """The number of tokens expected among the ids, by their masses, and the actual number."""
    entries = found.entries(document, offset + by)
    there = entries >= 0
    some = np.take(records.ids, entries[there], axis=0)
    logs = np.take(records.logs, entries[there], axis=0)[:, :-1]
    promised = np.exp(logs).sum(where=some >= 0)
    return float(promised), float((some == labels[there][:, None]).any(1).sum())


def by_key(named: Mapping[object, int], values: Sequence[object], key: str, path: str) -> list[int]:
    """The record of each document, by the value of a column that both have."""
    missing = [each for each in values if each not in named]
    if missing:
        said = "no value" if missing[0] is None else repr(missing[0])
        raise RunError(
            f"{len(missing):,} of {len(values):,} documents have no record in {path}, the first of "
            f"them with {said} in the column {key!r}"
        )
    return [named[each] for each in values]
