"""A teacher for each part of the data: documents choose by their columns who answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdcore import (
    Batch,
    GappedLogits,
    Run,
    SparseLogits,
    Stage,
    Teacher,
    TeacherOutputs,
    UsageError,
    columns_of,
    component,
    hookimpl,
    read_nll,
    read_outputs,
    select_rows,
)

_log = logging.getLogger("kdcore")
_Value = str | int | float
Where = dict[str, _Value | list[_Value]]


@component
class Routed(Teacher):
    """Several teachers, each for the documents that its `where` names.

    `members = [{use = "hf", model = "...", where = {domain = "math"}}, {use = "hf", ...}]`: a token
    is answered for by the first member whose `where` matches its document, as in `[[loss]]`; a
    member without one takes the rest. Each reads the rows that hold a token of its own. Documents
    without a member are left out by the terms that need the teacher.
    """

    name = "routed"
    members: Annotated[list[Teacher], Field(min_length=1)]
    where: Annotated[
        list[Where | None],
        Field(description="of each member: its documents", json_schema_extra={"beside": "members"}),
    ] = Field(default_factory=list)
    keep_loaded: Annotated[
        Literal["all", "one"],
        Field(description="members on the device: all, or one after another; heads stay"),
    ] = "all"
    elsewhere = frozenset({"keep_loaded"})

    def __post_init__(self) -> None:
        self._told = False
        wheres = self._wheres()
        if None in wheres[:-1]:
            raise UsageError(
                "a member without `where` takes the rest, so only the last member can be one"
            )
        if {} in wheres:
            raise UsageError("a `where` names at least one column")

    def _wheres(self) -> list[Where | None]:
        return [*self.where, *[None] * (len(self.members) - len(self.where))]

    def reads_columns(self) -> Sequence[Where]:
        """Those of every `where`."""
        return [where for where in self._wheres() if where is not None]

    def faults(self, recipe: Stage) -> Iterable[str]:
        """Members that know other numbers of ids cannot stand for one another."""
        known = {member.ids_known() for member in self.members if member.gives_logits()}
        if len(known) > 1:
            told = ", ".join("all" if k is None else str(k) for k in sorted(known, key=str))
            yield f"the members know {told} ids of each position, and must know as many as another"
        for member in self.members:
            if member.gives_parts():
                yield f"the member {member.name!r} averages losses, and a route needs its logits"
            if self.keep_loaded == "one" and not member.moves():
                yield (
                    f"the member {member.name!r} cannot leave the device (it is quantised, "
                    'offloaded, or holds no model itself): leave keep_loaded = "one" out'
                )

    def load(self, run: Run) -> None:
        """The engine loads the members; those that take turns leave the device again."""
        if self.takes_turns():
            for member in self.members:
                member.to_host()

    def takes_turns(self) -> bool:
        """As `keep_loaded` says."""
        return self.keep_loaded == "one"

    @contextmanager
    def _present(self, member: Teacher) -> Iterator[None]:
        """While a member's trunk runs."""
        if not self.takes_turns():
            yield
            return
        member.to_device()
        try:
            yield
        finally:
            member.to_host()

    def _read(self, member: Teacher, batch: Batch) -> TeacherOutputs:
        with self._present(member):
            return read_outputs(member, batch)

    def _read_nll(self, member: Teacher, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
        with self._present(member):
            return read_nll(member, batch)

    def gives_logits(self) -> bool:
        """Whether every member does."""
        return all(member.gives_logits() for member in self.members)

    def gives_losses(self) -> bool:
        """Whether every member does."""
        return all(member.gives_losses() for member in self.members)

    def ids_known(self) -> int | None:
        """As many as each member."""
        return self.members[0].ids_known()

    def knows_others_at(self, temperature: float) -> bool | None:
        """What the member says that knows least."""
        said = [member.knows_others_at(temperature) for member in self.members]
        return False if False in said else None if None in said else True

    def knows_all(self) -> bool:
        """Whether some member takes the rest, and every member knows all."""
        return None in self._wheres() and all(member.knows_all() for member in self.members)

    def known(self, batch: Batch) -> Tensor | None:
        """The tokens of documents that have a member, as far as it knows them itself."""
        if self.knows_all():
            return None
        found = torch.zeros(batch.labels.numel(), dtype=torch.bool, device=batch.valid.device)
        for member, some, place, own in self._parts(batch):
            told = member.known(some)
            if told is not None:
                theirs = torch.zeros_like(some.labels, dtype=torch.bool)
                theirs[some.valid] = told
                own = own & theirs[place]
            found |= own
        return found[batch.valid]

    def is_estimate(self) -> bool:
        """Whether one of them is."""
        return any(member.is_estimate() for member in self.members)

    def bytes_per_token(self) -> float:
        """At most what one of them keeps of a token."""
        return max(member.bytes_per_token() for member in self.members)

    def read(self, batch: Batch) -> TeacherOutputs:
        """Each member reads its rows once, and answers at the positions of its documents."""
        parts = [
            (_placed(self._read(member, some), place), own)
            for member, some, place, own in self._parts(batch)
        ]
        if not parts:
            return _none_of(batch, self.ids_known())
        return lambda positions: _joined(parts, positions)

    def nll(self, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
        """The same with each member's own losses."""
        parts = [
            (self._read_nll(member, some), place, own)
            for member, some, place, own in self._parts(batch)
        ]

        def nll(positions: Tensor, labels: Tensor) -> Tensor:
            found = labels.new_zeros(len(labels), dtype=torch.float32)
            for at, place, own in parts:
                told = at(place[positions], labels)
                found = torch.where(own[positions], told, found.to(told.dtype))
            return found

        return nll

    def _parts(self, batch: Batch) -> Iterator[tuple[Teacher, Batch, Tensor, Tensor]]:
        """For each member that has a token here: its rows, where each position of the batch is
        among theirs (0 where it is not), and which positions are its own.
        """
        rows, time = batch.input_ids.shape
        device = batch.valid.device
        for member, own in zip(self.members, self._own(batch), strict=True):
            held = np.flatnonzero(own.reshape(rows, time).any(1))
            if not len(held):
                continue
            some = select_rows(batch, held.tolist())
            width = some.input_ids.shape[1]
            place = np.zeros((rows, time), np.int64)
            inside = np.arange(width) + width * np.arange(len(held))[:, None]
            place[held, :width] = inside
            yield member, some, _sent(place.reshape(-1), device), _sent(own, device)

    def _own(self, batch: Batch) -> list[np.ndarray]:
        """Which flat positions each member answers for, bool; none for some, perhaps."""
        columns = columns_of(batch)
        free, found = columns.matches({}), list[np.ndarray]()
        for where in self._wheres():
            own = free if where is None else free & columns.matches(where)
            found.append(own)
            free = free & ~own
        if free.any() and not self._told:
            self._told = True
            _log.warning(
                "no member of the teacher 'routed' answers for some documents: terms that need the "
                "teacher leave these out; a last member without `where` would take them"
            )
        return found


def _sent(array: np.ndarray, device: torch.device) -> Tensor:
    """A tensor of it on the device; the host does not wait until it is there."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


_Part = tuple[Callable[[Tensor], "Tensor | SparseLogits"], Tensor]


def _placed(at: TeacherOutputs, place: Tensor) -> Callable[[Tensor], Tensor | SparseLogits]:
    return lambda positions: at(place[positions])


def _joined(parts: Sequence[_Part], positions: Tensor) -> Tensor | SparseLogits:
    """What each part says of its own positions, or where that must be, of all of them."""
    found = None
    for answer, own in parts:
        mine = own[positions]
        if len(parts) == 1 or _all_answer_everywhere(positions):
            found = _where(mine, answer(positions), found)
        elif mine.any():
            told = _spread(answer(positions[mine]), mine)
            found = _where(mine, told, found)
    return answer(positions) if found is None else found


def _all_answer_everywhere(positions: Tensor) -> bool:
    """On a GPU: which positions are whose only the device knows, and to ask it would be to wait."""
    return positions.is_cuda


def _spread(told: Tensor | SparseLogits, mine: Tensor) -> Tensor | SparseLogits:
    """An answer at some positions, laid where they stand among all."""
    if isinstance(told, SparseLogits):
        ids, logs, tempered = told
        more = tempered and {at: _spread_one(some, mine) for at, some in tempered.items()}
        return type(told)(_spread_one(ids, mine), _spread_one(logs, mine), more)
    return _spread_one(told, mine)


def _spread_one(some: Tensor, mine: Tensor) -> Tensor:
    laid = some.new_zeros(len(mine), *some.shape[1:])
    laid[mine] = some
    return laid


def _where(
    mine: Tensor, told: Tensor | SparseLogits, other: Tensor | SparseLogits | None
) -> Tensor | SparseLogits:
    """What is told where it is mine, else the other."""
    if other is None:
        return told
    if isinstance(told, SparseLogits) and isinstance(other, SparseLogits):
        mine_tempered, others = told.tempered or {}, other.tempered or {}
        both = mine_tempered.keys() & others.keys()
        more = {at: torch.where(mine, mine_tempered[at], others[at]) for at in both}
        ids = torch.where(mine[:, None], told.ids, other.ids)
        logs = torch.where(mine[:, None], told.log_probabilities, other.log_probabilities)
        kind = type(told) if isinstance(told, GappedLogits) else type(other)
        return kind(ids, logs, more or None)
    assert isinstance(told, Tensor) and isinstance(other, Tensor)
    return torch.where(mine[:, None], told, other)


def _none_of(batch: Batch, known: int | None) -> TeacherOutputs:
    """A batch that is padding throughout is asked for nothing."""

    def nothing(positions: Tensor) -> Tensor | SparseLogits:
        logits = batch.input_ids.new_zeros(len(positions), batch.vocabulary, dtype=torch.float32)
        if known is None:
            return logits
        return SparseLogits(positions[:, None].expand(-1, known), logits[:, : known + 1])

    return nothing


@hookimpl
def kdcore_teachers() -> Sequence[type[Teacher]]:
    """The one above."""
    return [Routed]
