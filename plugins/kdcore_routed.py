"""Several teachers, chosen for each document by its columns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdcore import (
    Batch,
    CombinedTeacher,
    GappedLogits,
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
class Routed(CombinedTeacher):
    """Several teachers, each for the documents that match its `where`.

    `members = [{use = "hf", model = "...", where = {domain = "math"}}, {use = "hf", ...}]`: the
    first member whose `where` matches a token's document is its teacher, as in `[[loss]]`; a member
    without `where` takes the rest. Each member reads only rows that hold its tokens. Loss terms
    that need the teacher skip documents without a member.
    """

    name = "routed"
    where: Annotated[
        list[Where | None],
        Field(description="of each member: its documents", json_schema_extra={"beside": "members"}),
    ] = Field(default_factory=list)

    def __post_init__(self) -> None:
        self._reported = False
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
        """The columns of every `where`."""
        return [where for where in self._wheres() if where is not None]

    def faults(self, recipe: Stage) -> Iterable[str]:
        """Reject members that know different numbers of ids."""
        known = {member.ids_known() for member in self.members if member.gives_logits()}
        if len(known) > 1:
            counts = ", ".join("all" if k is None else str(k) for k in sorted(known, key=str))
            yield (
                f"the members know {counts} ids at each position, but all must know the same number"
            )
        for member in self.members:
            if member.gives_parts():
                yield f"the member {member.name!r} averages losses, but a route needs its logits"
        yield from super().faults(recipe)

    def _read(self, member: Teacher, batch: Batch) -> TeacherOutputs:
        with self.present(member):
            return read_outputs(member, batch)

    def _read_nll(self, member: Teacher, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
        with self.present(member):
            return read_nll(member, batch)

    def gives_losses(self) -> bool:
        """Whether every member does."""
        return all(member.gives_losses() for member in self.members)

    def ids_known(self) -> int | None:
        """The number that all members share."""
        return self.members[0].ids_known()

    def knows_others_at(self, temperature: float) -> bool | None:
        """Only temperatures that every member supports."""
        said = [member.knows_others_at(temperature) for member in self.members]
        return False if False in said else None if None in said else True

    def knows_all(self) -> bool:
        """Whether a member takes the rest, and every member knows all of its tokens."""
        return None in self._wheres() and all(member.knows_all() for member in self.members)

    def known(self, batch: Batch) -> Tensor | None:
        """The tokens of documents with a member, where that member knows them."""
        if self.knows_all():
            return None
        found = torch.zeros(batch.labels.numel(), dtype=torch.bool, device=batch.valid.device)
        for member, some, place, own in self._parts(batch, lambda one, some: one.known(some)):
            covered = member.known(some)
            if covered is not None:
                theirs = torch.zeros_like(some.labels, dtype=torch.bool)
                theirs[some.valid] = covered
                own = own & theirs[place]
            found |= own
        return found[batch.valid]

    def is_estimate(self) -> bool:
        """Whether any member's is."""
        return any(member.is_estimate() for member in self.members)

    def bytes_per_token(self) -> float:
        """The maximum over members."""
        return max(member.bytes_per_token() for member in self.members)

    def read(self, batch: Batch) -> TeacherOutputs:
        """Each member reads its rows once and gives the outputs at its documents' positions."""
        parts = [
            (_placed(self._read(member, some), place), own)
            for member, some, place, own in self._parts(batch, self._read)
        ]
        if not parts:
            return _none_of(batch, self.ids_known())
        return lambda positions: _joined(parts, positions)

    def nll(self, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
        """Like `read`, with each member's own losses."""
        parts = [
            (self._read_nll(member, some), place, own)
            for member, some, place, own in self._parts(batch, self._read_nll)
        ]

        def nll(positions: Tensor, labels: Tensor) -> Tensor:
            found = labels.new_zeros(len(labels), dtype=torch.float32)
            for at, place, own in parts:
                values = at(place[positions], labels)
                found = torch.where(own[positions], values, found.to(values.dtype))
            return found

        return nll

    def _parts(
        self, batch: Batch, ask: Callable[[Teacher, Batch], object]
    ) -> Iterator[tuple[Teacher, Batch, Tensor, Tensor]]:
        """For each member with tokens here: its rows, and two maps of the batch's flat positions.

        The first is a position's index in these rows (0 if not there), the second whether it is the
        member's. A sharded member without tokens here runs all the same, as other processes
        wait for it.
        """
        rows, time = batch.input_ids.shape
        device = batch.valid.device
        for member, own in zip(self.members, self._own(batch), strict=True):
            held = np.flatnonzero(own.reshape(rows, time).any(1))
            if not len(held):
                if member.is_sharded():
                    ask(member, replace(batch, valid=batch.valid[:0]))
                continue
            some = select_rows(batch, held.tolist())
            width = some.input_ids.shape[1]
            place = np.zeros((rows, time), np.int64)
            inside = np.arange(width) + width * np.arange(len(held))[:, None]
            place[held, :width] = inside
            yield member, some, _sent(place.reshape(-1), device), _sent(own, device)

    def _own(self, batch: Batch) -> list[np.ndarray]:
        """The flat positions of each member, bool; some may have none."""
        columns = columns_of(batch)
        free, found = columns.matches({}), list[np.ndarray]()
        for where in self._wheres():
            own = free if where is None else free & columns.matches(where)
            found.append(own)
            free = free & ~own
        if free.any() and not self._reported:
            self._reported = True
            _log.warning(
                "no member of the teacher 'routed' answers for some documents: terms that need the "
                "teacher leave these out; a last member without `where` would take them"
            )
        return found


def _sent(array: np.ndarray, device: torch.device) -> Tensor:
    """A tensor of the values on the device, copied without waiting."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


_Part = tuple[Callable[[Tensor], "Tensor | SparseLogits"], Tensor]


def _placed(at: TeacherOutputs, place: Tensor) -> Callable[[Tensor], Tensor | SparseLogits]:
    return lambda positions: at(place[positions])


def _joined(parts: Sequence[_Part], positions: Tensor) -> Tensor | SparseLogits:
    """The parts' outputs, each at its own positions, or at all positions where that is required."""
    found = None
    for answer, own in parts:
        mine = own[positions]
        if len(parts) == 1 or _all_answer_everywhere(positions):
            found = _where(mine, answer(positions), found)
        elif mine.any():
            answers = _spread(answer(positions[mine]), mine)
            found = _where(mine, answers, found)
    return answer(positions) if found is None else found


def _all_answer_everywhere(positions: Tensor) -> bool:
    """On a GPU only the device knows whose a position is, and reading that would synchronise."""
    return positions.is_cuda


def _spread(outputs: Tensor | SparseLogits, mine: Tensor) -> Tensor | SparseLogits:
    """Outputs at some positions, scattered to their places among all."""
    if isinstance(outputs, SparseLogits):
        ids, logs, tempered = outputs
        more = tempered and {at: _spread_one(some, mine) for at, some in tempered.items()}
        return type(outputs)(_spread_one(ids, mine), _spread_one(logs, mine), more)
    return _spread_one(outputs, mine)


def _spread_one(some: Tensor, mine: Tensor) -> Tensor:
    spread = some.new_zeros(len(mine), *some.shape[1:])
    spread[mine] = some
    return spread


def _where(
    mine: Tensor, own: Tensor | SparseLogits, other: Tensor | SparseLogits | None
) -> Tensor | SparseLogits:
    """The output where a position is this member's, else the other output."""
    if other is None:
        return own
    if isinstance(own, SparseLogits) and isinstance(other, SparseLogits):
        mine_tempered, others = own.tempered or {}, other.tempered or {}
        both = mine_tempered.keys() & others.keys()
        more = {at: torch.where(mine, mine_tempered[at], others[at]) for at in both}
        ids = torch.where(mine[:, None], own.ids, other.ids)
        logs = torch.where(mine[:, None], own.log_probabilities, other.log_probabilities)
        kind = type(own) if isinstance(own, GappedLogits) else type(other)
        return kind(ids, logs, more or None)
    assert isinstance(own, Tensor) and isinstance(other, Tensor)
    return torch.where(mine[:, None], own, other)


def _none_of(batch: Batch, known: int | None) -> TeacherOutputs:
    """A batch of padding only has no tokens to route."""

    def nothing(positions: Tensor) -> Tensor | SparseLogits:
        logits = batch.input_ids.new_zeros(len(positions), batch.vocabulary, dtype=torch.float32)
        if known is None:
            return logits
        return SparseLogits(positions[:, None].expand(-1, known), logits[:, : known + 1])

    return nothing


@hookimpl
def kdcore_teachers() -> Sequence[type[Teacher]]:
    """The teacher `routed`."""
    return [Routed]
