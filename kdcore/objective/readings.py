"""A micro-batch with the cached outputs of teachers, and the tokens that each term sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, cast

import numpy as np
from torch import Tensor

from kdcore.api.loss import Loss
from kdcore.api.teacher import Teacher
from kdcore.data.batch import (
    Batch,
    LogitsFn,
    OwnVocabulary,
    PartOutputs,
    Parts,
    SparseLogits,
    StatesFn,
    TeacherOutputs,
    TwoVocabularies,
    columns_of,
)
from kdcore.data.collate import on_host, sent
from kdcore.data.where import Where
from kdcore.models.head import nll_from_logits
from kdcore.objective.teachers import (
    known_to,
    own_vocabulary,
    read_nll,
    read_outputs,
    read_parts,
    read_with_states,
)

_Shared = Tensor | SparseLogits | Parts | None


class View(NamedTuple):
    """A subset of the valid tokens: of matching documents, and covered by a teacher."""

    where: Where | None
    teacher: Teacher | None  # None: coverage does not matter
    own: bool = False  # True: over its own ids, which cover the tokens in spans


class MicroBatch:
    """A micro-batch with teacher outputs, cached so that no teacher reads it twice."""

    def __init__(
        self,
        batch: Batch,
        rows: Sequence[int],
        states: tuple[Teacher, Sequence[int]] | None = None,
    ) -> None:
        self.batch = batch
        self.rows = rows  # each row's index in the optimizer step
        self._states_of = states  # teacher and layers of which to read hidden states
        self._states: StatesFn | None = None
        self._read: dict[int, TeacherOutputs] = {}
        self._parts: dict[int, PartOutputs] = {}
        self._own: dict[int, OwnVocabulary] = {}
        self._matching: dict[str, np.ndarray] = {}  # by view, as text

    def logits_of(self, teacher: Teacher) -> TeacherOutputs:
        """The teacher's logits by flat position. Its trunk runs at the first call."""
        if id(teacher) not in self._read:
            if self._states_of is not None and teacher is self._states_of[0]:
                found, self._states = read_with_states(teacher, self.batch, self._states_of[1])
            else:
                found = read_outputs(teacher, self.batch)
            self._read[id(teacher)] = found
        return self._read[id(teacher)]

    def states_of(self, teacher: Teacher) -> StatesFn:
        """The hidden states of this teacher's requested layers, by flat position."""
        self.logits_of(teacher)
        assert self._states is not None, "states are read of the teacher that they are wanted of"
        return self._states

    def parts_of(self, teacher: Teacher) -> PartOutputs:
        """The teacher's parts, or its logits where it has none."""
        if not teacher.gives_parts():
            return self.logits_of(teacher)
        if id(teacher) not in self._parts:
            self._parts[id(teacher)] = read_parts(teacher, self.batch)
        return self._parts[id(teacher)]

    def outputs_of(self, teacher: Teacher, losses: Iterable[Loss]) -> PartOutputs:
        """What these losses need: outputs over the student's ids, the teacher's own, or both."""
        asking = {loss.own_vocabulary for loss in losses}
        if True not in asking:
            return self.parts_of(teacher)
        shared = self.parts_of(teacher) if False in asking else None
        own = self.own_of(teacher).logits
        return lambda at: TwoVocabularies(cast(_Shared, shared and shared(at)), own(at))

    def own_of(self, teacher: Teacher) -> OwnVocabulary:
        """The teacher's outputs over its own ids. Its trunk runs at the first use."""
        if id(teacher) not in self._own:
            self._own[id(teacher)] = own_vocabulary(teacher, self.batch)
        return self._own[id(teacher)]

    @property
    def valid_on_host(self) -> np.ndarray:
        """The batch's valid positions [n]."""
        return on_host(self.batch).valid

    def matching(self, view: View) -> np.ndarray:
        """Which valid tokens are in a view, bool [n], on the host."""
        key = f"{view.where} {id(view.teacher)} {view.own}"
        if key not in self._matching:
            found = np.ones(len(self.batch.valid), bool)
            if view.where is not None:
                found = columns_of(self.batch).matches(view.where)[self.valid_on_host]
            if view.teacher is not None:
                found = found & self._known_to(view.teacher, own=view.own)
            self._matching[key] = found
        return self._matching[key]

    def _known_to(self, teacher: Teacher, *, own: bool) -> np.ndarray:
        if own:
            known: np.ndarray = self.own_of(teacher).spans.cpu().numpy() >= 0
            return known
        return known_to(teacher, self.batch).cpu().numpy()

    def view(self, view: View) -> Tensor:
        """The same on the device."""
        return sent(self.matching(view), self.batch.valid.device)

    def forget(self) -> None:
        """Release the cached teacher outputs."""
        self._read.clear()
        self._parts.clear()
        self._own.clear()
        self._states = None

    def nll_of(self, teacher: Teacher) -> Callable[[Tensor, Tensor], Tensor]:
        """The teacher's negative log-likelihoods, from cached logits if available."""
        if id(teacher) in self._read and teacher.ids_known() is None:
            return nll_from_logits(cast(LogitsFn, self._read[id(teacher)]), self.batch)
        return read_nll(teacher, self.batch)
