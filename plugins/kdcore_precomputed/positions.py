"""Parse a record's positions into arrays of k ids and log-probabilities, with checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from kdcore_text.record import Record, shown_names

from kdcore import RunError
from kdcore_precomputed.packed import IDS, Packing

_ABOVE = 1e-3  # how far a log-probability may exceed 0
_MASS = 1e-2  # how far masses may exceed 1 in sum, from rounding to half precision
_OTHERS = -100.0  # the log-mass of the other ids if they have none


@dataclass(frozen=True, eq=False)
class Positions:
    """The entries of one record, the likeliest id first; -1 pads missing ids."""

    ids: np.ndarray  # int32 [n, k]
    logs: np.ndarray  # float32 [n, k + 1], the last for all other ids together


@dataclass(frozen=True)
class Columns:
    """The names of a file's columns, and the meaning of its log-probabilities."""

    log_probs: str
    ids: str | None = None  # None: log_probs holds both
    tail: bool = True
    packing: Callable[[], Packing] | None = None

    def entries(self, record: Record) -> list[tuple[Sequence[Any], Sequence[Any]]]:
        """The ids and log-probabilities at each position; empty where a record has none."""
        if self.packing and IDS in record.values and self.log_probs not in record.values:
            return [*self.packing().entries(record)]
        logs = _listed(record, self.log_probs)
        if self.ids is None:
            return [_pairs(each, n, record, self.log_probs) for n, each in enumerate(logs, 1)]
        ids = _listed(record, self.ids)
        if len(ids) != len(logs):
            raise RunError(
                f"{record.where} has {len(ids)} positions in {self.ids!r} and {len(logs)} in "
                f"{self.log_probs!r}"
            )
        both = zip(_lists(ids, record, self.ids), _lists(logs, record, self.log_probs), strict=True)
        return [*both]

    def read(self, record: Record, k: int, vocabulary: int) -> Positions:
        """A record's positions. Raises RunError with the location and the cause."""
        entries = self.entries(record)
        ids = np.full((len(entries), k), -1, np.int32)
        logs = np.full((len(entries), k + 1), _OTHERS, np.float32)
        for n, (some, values) in enumerate(entries):
            known, given = _checked(some, values, vocabulary, f"{record.where}, position {n + 1}")
            logs[n, -1] = 0.0
            if len(known):
                ids[n, : len(known)], logs[n] = known[:k], self._filled(given, k)
                ids[n, len(known[:k]) :] = -1
        return Positions(ids, logs)

    def _filled(self, logs: np.ndarray, k: int) -> np.ndarray:
        """The k likeliest, and last the mass of all others."""
        found = np.full(k + 1, _OTHERS)
        found[: len(logs[:k])] = logs[:k]
        if self.tail:
            found[-1] = np.log(max(1.0 - np.exp(logs[:k]).sum(), 1e-12))
        filled: np.ndarray = found - np.logaddexp.reduce(found)
        return filled


def is_id(one: object) -> bool:
    """Whether it is a whole number that int32 holds."""
    whole = isinstance(one, int | np.integer) and not isinstance(one, bool)
    return whole and -(2**31) <= one < 2**31  # type: ignore[operator]


def _checked(
    some: Sequence[Any], values: Sequence[Any], vocabulary: int, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """The ids and log-probabilities of a position, the likeliest first. -inf marks a missing id."""
    if len(some) != len(values):
        raise RunError(f"{where}: {len(some)} ids with {len(values)} log-probabilities")
    if not all(map(is_id, some)):
        raise RunError(f"{where}: ids should be whole numbers below 2 ** 31")
    if any(isinstance(each, bool) or not isinstance(each, int | float) for each in values):
        raise RunError(f"{where}: log-probabilities should be numbers")
    ids, logs = np.array(some, np.int64), np.array(values, np.float64)
    there = logs != -np.inf
    ids, logs = ids[there], logs[there]
    if not (logs <= _ABOVE).all():
        wrong = logs[~(logs <= _ABOVE)][0]
        raise RunError(f"{where}: a log-probability of {wrong:g}; at most 0 is possible")
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocabulary:
        wrong = ids[(ids < 0) | (ids >= vocabulary)][0]
        raise RunError(
            f"{where}: the id {wrong}, and student and teacher share those below {vocabulary} "
            "only: are the records of a model with the student's tokenizer?"
        )
    if len(np.unique(ids)) < len(ids):
        wrong = next(each for each in ids if (ids == each).sum() > 1)
        raise RunError(f"{where}: the id {wrong} occurs twice")
    if np.exp(logs).sum() > 1 + _MASS:
        raise RunError(f"{where}: the masses are {np.exp(logs).sum():.4g} together, and 1 at most")
    order = np.lexsort((ids, -logs))
    return ids[order], np.minimum(logs[order], 0.0)


def _listed(record: Record, column: str) -> Sequence[Any]:
    found = record.values.get(column)
    if column not in record.values:
        hint = _compressed(record) or f"it has {shown_names([*record.values])}"
        raise RunError(f"{record.where} has no column {column!r}: {hint}")
    if not isinstance(found, Sequence) or isinstance(found, str):
        kind = type(found).__name__
        raise RunError(f"{record.where}: {column!r} holds {kind}, and should hold a list")
    return found


def _lists(entries: Sequence[Any], record: Record, column: str) -> Iterator[Sequence[Any]]:
    """The list at each position; null is an empty one."""
    for n, entry in enumerate(entries, 1):
        if entry is not None and (not isinstance(entry, Sequence) or isinstance(entry, str)):
            raise RunError(
                f"{record.where}, position {n}: {column!r} holds {type(entry).__name__}, and "
                "should hold a list"
            )
        yield entry or ()


def _compressed(record: Record) -> str:
    """The error message for DistillKit's older columns, which hold logits without their sum."""
    if "packed_indices" not in record.values:
        return ""
    return (
        "its records are packed by an older DistillKit, as logits; unpack them with its "
        "LogprobCompressor and write the ids and the log-probabilities as lists"
    )


def _pairs(entry: Any, n: int, record: Record, column: str) -> tuple[list[Any], list[Any]]:
    """The ids and log-probabilities of a position that stores both in one entry."""
    if not entry:
        return [], []
    try:
        if isinstance(entry, Mapping):  # vLLM: {id: {"logprob": ...}}
            each = [(key, value) for key, value in entry.items() if value is not None]
        else:  # axolotl: [{"token": "token_id:7", "logprob": ...}]
            each = [(value["token"], value) for value in entry if value is not None]
        ids = [int(str(key).removeprefix("token_id:")) for key, _ in each]
        return ids, [value["logprob"] for _, value in each]
    except (ValueError, KeyError, TypeError):
        raise RunError(
            f"{record.where}, position {n}: {column!r} should hold ids with their log-probability, "
            'as {"token": "token_id:7", "logprob": -0.1} or {"7": {"logprob": -0.1}}; name the '
            "column of ids as `ids` if they have one of their own"
        ) from None
