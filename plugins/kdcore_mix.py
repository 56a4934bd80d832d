"""A mixture of data sets in chosen proportions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from kdcore import Data, Row, Rows, Stage, component, hookimpl, join_rows, join_streams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MEMBER = "member"
"""The column that says which member a document is of."""

_THEIRS = ("rows", "cut", "bos", "eos", "special_tokens")
_AT_ONCE = 1024  # members drawn per batch

Share = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@component
class Mix(Data):
    """Rows of several data sets; each document has its member's name in the column `member`.

    `members` are data sets by name, `shares` their proportions of the rows, normalised to sum to 1.
    Without `shares`, each member gives all of its rows. An epoch ends when the first member is
    exhausted ("first_exhausted"), or when all have been read, with smaller ones repeated
    ("all_exhausted"). Which rows of a member are read is drawn from the seed and the epoch; later
    epochs continue where earlier ones ended.

    Members build their own rows, of at most the `block` set here. Validation uses all rows of all
    members. If a member streams, the mixture does too, shuffled within `buffer` rows.
    """

    name = "mix"
    fresh_each_epoch = True
    members: Annotated[dict[str, Data], Field(min_length=1)]
    shares: dict[str, Share] | None = None
    stop: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
    buffer: Annotated[int, Field(ge=1)] = 4096

    def __post_init__(self) -> None:
        self._datasets: dict[tuple[str, str], tuple[object, Rows]] = {}
        if self.shares is not None and self.shares.keys() != self.members.keys():
            names = ", ".join(self.members)
            raise ValueError(f"shares names the members, which are {names}, each once")
        for name, member in self.members.items():
            if member.block not in (type(member).block, self.block):
                raise ValueError(f"block belongs next to members, not in {name}")
            member.block = self.block

    @property
    def streams(self) -> bool:  # type: ignore[override]  # a constant of other data
        """Whether any member does."""
        return any(member.streams for member in self.members.values())

    def faults(self, recipe: Stage) -> Iterator[str]:
        """Reject options that only members read, and streams without a known size."""
        for option in _THEIRS:
            if getattr(self, option) != getattr(Data, option):
                yield f"{option} belongs in the members of a mix, which make their own rows"
        if self.streams and recipe.data is self and recipe.train.steps is None:
            yield "the length of a stream is unknown: set train.steps instead of epochs or tokens"
        if self.streams and self.shares is None:
            yield "a mix with a stream needs shares: the number of rows of a stream is unknown"

    def column_names(self) -> Sequence[str] | None:
        """The members' columns, and `member`."""
        each = [member.column_names() for member in self.members.values()]
        known = [names for names in each if names is not None]
        if len(known) < len(each):
            return None
        return list(dict.fromkeys([*(name for names in known for name in names), MEMBER]))

    def documents(self, split: str) -> Iterator[str | Row]:
        """The documents of all members, one member after another."""
        for name, member in self.members.items():
            for given in member.documents(split):
                document: Row = {"text": given} if isinstance(given, str) else given
                yield {**document, "columns": {**document.get("columns", {}), MEMBER: name}}

    def make_rows(
        self, split: str, tokenizer: PreTrainedTokenizerBase, *, seed: int, epoch: int
    ) -> Rows:
        """The members' rows, combined."""
        datasets = {
            name: self._rows_of(name, split, tokenizer, seed, epoch) for name in self.members
        }
        if split != "train":
            return _all_of(split, datasets)
        if self.streams:
            return join_streams(
                split,
                datasets,
                lambda: _drawn([seed, epoch], list(self._shares(datasets))),
                column=MEMBER,
                seed=[seed, epoch],
                all_exhausted=self.stop == "all_exhausted",
                window=self.buffer,
            )
        return join_rows(split, datasets, self._order(datasets, seed, epoch), column=MEMBER)

    def _rows_of(
        self, name: str, split: str, tokenizer: PreTrainedTokenizerBase, seed: int, epoch: int
    ) -> Rows:
        """A member's rows, cached unless they change with the epoch."""
        member = self.members[name]
        held = self._datasets.get((name, split))
        if member.fresh_each_epoch or held is None or held[0] is not tokenizer:
            made = member.make_rows(split, tokenizer, seed=seed, epoch=epoch)
            held = self._datasets[name, split] = (tokenizer, made)
        return held[1]

    def _shares(self, datasets: Mapping[str, Rows]) -> Sequence[float]:
        """The normalised share of each member."""
        given = self.shares or {name: len(rows) for name, rows in datasets.items()}  # type: ignore[arg-type]
        total = sum(given.values())
        return [given[name] / total for name in datasets]

    def _order(self, datasets: Mapping[str, Rows], seed: int, epoch: int) -> np.ndarray:
        """The rows of an epoch as pairs (member, row) [rows, 2], one member after another."""
        sizes = [len(rows) for rows in datasets.values()]  # type: ignore[arg-type]
        wanted = self.counts(sizes, self._shares(datasets))
        each = [
            np.stack([np.full(count, n), _rows(seed, n, size, epoch * count, count)], axis=1)
            for n, (size, count) in enumerate(zip(sizes, wanted, strict=True))
        ]
        return np.concatenate(each)

    def counts(self, sizes: Sequence[int], shares: Sequence[float]) -> list[int]:
        """The number of rows an epoch takes from each member of these sizes, at least one."""
        fill = min if self.stop == "first_exhausted" else max
        total = fill(size / share for size, share in zip(sizes, shares, strict=True))
        # The tolerance is for rounding: 0.1 * 30 may come out just below 3.
        return [max(1, int(total * share + 1e-6)) for share in shares]


def _rows(seed: int, member: int, size: int, first: int, count: int) -> np.ndarray:
    """`count` rows of a member from row `first` on, over passes that are each shuffled anew."""
    places = np.arange(first, first + count)
    found = np.empty(count, np.int64)
    for once in np.unique(places // size):
        drawn = np.random.default_rng([seed, 0x313, member, int(once)]).permutation(size)
        mine = places // size == once
        found[mine] = drawn[places[mine] % size]
    return found


def _drawn(seed: Sequence[int], shares: Sequence[float]) -> Iterator[int]:
    """Members drawn by their shares, endlessly."""
    generator = np.random.default_rng([*seed, 0x313])
    while True:
        yield from generator.choice(len(shares), _AT_ONCE, p=shares).tolist()


def _all_of(split: str, datasets: Mapping[str, Rows]) -> Rows:
    """Every row of every member; round-robin if any streams."""
    if all(hasattr(rows, "__getitem__") and len(rows) for rows in datasets.values()):  # type: ignore[arg-type]
        sizes = [len(rows) for rows in datasets.values()]  # type: ignore[arg-type]
        each = [
            np.stack([np.full(size, n), np.arange(size)], axis=1) for n, size in enumerate(sizes)
        ]
        return join_rows(split, datasets, np.concatenate(each), column=MEMBER)
    return _in_turn(datasets)


def _in_turn(datasets: Mapping[str, Rows]) -> Iterable[Row]:
    """Round-robin over the members until all are exhausted."""
    for rows in zip_longest(*map(iter, datasets.values())):
        for n, (name, row) in enumerate(zip(datasets, rows, strict=True)):
            if row is not None:
                yield _of_member(row, name, n, len(datasets))


def _of_member(row: Row, name: str, n: int, members: int) -> Row:
    given, mine = row.get("columns") or {}, {MEMBER: name}
    alone = isinstance(given, Mapping)
    made = {**row, "columns": {**given, **mine} if alone else [{**each, **mine} for each in given]}
    if row.get("document") is not None:  # numbers unique across members
        made["document"] = np.asarray(row["document"]) * members + n
    return made


@hookimpl
def kdcore_data() -> Sequence[type[Data]]:
    """The data `mix`."""
    return [Mix]
