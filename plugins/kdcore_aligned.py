"""A teacher with another tokenizer, at the tokens that are one token to both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from kdcore import (
    Batch,
    GappedLogits,
    RetokenizedBatch,
    Retokenizer,
    Run,
    RunError,
    SparseLogits,
    Stage,
    Teacher,
    TeacherOutputs,
    component,
    hookimpl,
    ids_of_same_bytes,
    read_nll,
    read_outputs,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@component
class Aligned(Teacher):
    """A teacher that reads the same bytes in its own tokenizer's ids.

    Where a token of the student is exactly one token of the teacher, it gives the teacher's
    distribution over the ids whose bytes both vocabularies have, and one bucket for all others.
    Elsewhere it knows nothing, and losses that need a teacher do not see the token. A teacher that
    has all of the student's ids gives plain logits.
    """

    name = "aligned"
    own_tokens: ClassVar[bool] = True
    teacher: Teacher

    def __post_init__(self) -> None:
        self._retokenizer: Retokenizer | None = None
        self._ids: tuple[Tensor, Tensor] | None = None  # [k]: the student's, the teacher's
        self._known: int | None = None
        self._temperatures: Sequence[float] = ()
        self._made: WeakKeyDictionary[Batch, tuple[RetokenizedBatch, Tensor]] = WeakKeyDictionary()

    def faults(self, recipe: Stage) -> Iterable[str]:
        """A teacher within that does not give the logits of all its ids."""
        if not self.teacher.gives_logits() or self.teacher.is_estimate():
            yield f"the teacher {self.teacher.name!r} within gives no distribution"
        if self.teacher.own_tokens:
            yield f"the teacher {self.teacher.name!r} within reads tokens of its own already"

    def load(self, run: Run) -> None:
        """Compare both vocabularies; the engine has loaded the teacher within."""
        theirs = self._tokenizer()
        self._retokenizer = Retokenizer(run.tokenizer, theirs)
        self._others = self._width(len(theirs), run.device)
        shared = ids_of_same_bytes(self._retokenizer, run.vocabulary, self._others)
        if not shared:
            raise RunError("student and teacher share no id that stands for the same bytes")
        self._ids = (
            torch.tensor([*shared], device=run.device),
            torch.tensor([*shared.values()], device=run.device),
        )
        self._other_of = torch.full((run.vocabulary,), -1, device=run.device)
        self._other_of[self._ids[0]] = self._ids[1]
        self._mine = torch.full((self._others,), -1, device=run.device)
        self._mine[self._ids[1]] = self._ids[0]
        few = self.teacher.ids_known()
        self._known = few or (None if len(shared) == run.vocabulary else len(shared))
        self._temperatures = _temperatures(run.recipe)

    def ids_known(self) -> int | None:
        """Those of the teacher within, or the ids that both vocabularies have; 0 before loading."""
        return (self.teacher.ids_known() or 0) if self._retokenizer is None else self._known

    def knows_others_at(self, temperature: float) -> bool:
        """At any, where the teacher within gives the logits of all its ids."""
        return temperature == 1 or self.teacher.ids_known() is None

    def gives_losses(self) -> bool:
        """Where the teacher within does: a known token is one of its own."""
        return self.teacher.gives_losses()

    def nll(self, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
        """The teacher's own losses of the same tokens; NaN where it knows nothing."""
        made, places = self._of(batch)
        at = read_nll(self.teacher, made.batch)

        def nll(positions: Tensor, labels: Tensor) -> Tensor:
            known = places[positions]
            theirs = self._other_of[labels]
            found = at(known.clamp(min=0), theirs.clamp(min=0))
            return found.where((known >= 0) & (theirs >= 0), math.nan)

        return nll

    def known(self, batch: Batch) -> Tensor:
        """Which valid tokens are one token on both sides, bool [valid]."""
        return self._of(batch)[1][batch.valid] >= 0

    def read(self, batch: Batch) -> TeacherOutputs:
        """Let the teacher read its own batch; the student's positions become its."""
        made, places = self._of(batch)
        at = read_outputs(self.teacher, made.batch)
        return lambda positions: self._outputs(at(places[positions].clamp(min=0)))

    def fingerprint(self) -> str:
        """The teacher within, which its tokenizer is part of."""
        return f"aligned({self.teacher.fingerprint()})"

    def _outputs(self, said: Tensor | SparseLogits) -> Tensor | SparseLogits:
        """What the teacher within says, of the student's ids."""
        assert self._ids is not None, "a teacher is read after it was loaded"
        ours, theirs = self._ids
        if isinstance(said, SparseLogits):
            return self._of_few(said)
        if self._known is None:
            whole = torch.empty(len(said), len(ours), device=said.device, dtype=said.dtype)
            return whole.index_copy_(1, ours, said[:, theirs])
        logs = said.log_softmax(-1)
        shared = logs[:, theirs]
        others = logs.index_fill(1, theirs, -math.inf)
        tempered = {at: at * _mass(others / at) for at in self._temperatures}
        given = torch.cat([shared, _mass(others)[:, None]], -1)
        return SparseLogits(ours.expand(len(given), -1), given, tempered or None)

    def _of_few(self, said: SparseLogits) -> SparseLogits:
        """Of its few ids those that the student has, the likeliest first; the rest are others."""
        ids = torch.where(said.ids < 0, -1, self._mine[said.ids.clamp(min=0)])
        logs = said.log_probabilities
        known = logs[:, :-1].masked_fill(ids < 0, -math.inf)
        unknown = torch.cat([logs[:, :-1].masked_fill(ids >= 0, -math.inf), logs[:, -1:]], -1)
        known, order = known.sort(dim=-1, descending=True, stable=True)
        given = torch.cat([known.clamp(min=-100.0), _mass(unknown)[:, None]], -1)
        return GappedLogits(ids.gather(1, order), given)

    def _of(self, batch: Batch) -> tuple[RetokenizedBatch, Tensor]:
        """The teacher's batch, and for each flat position of the student's the teacher's, or -1."""
        if batch not in self._made:
            assert self._retokenizer is not None, "a teacher is read after it was loaded"
            made = self._retokenizer(batch, self._others)
            self._made[batch] = made, self._places(batch, made)
        return self._made[batch]

    def _places(self, batch: Batch, made: RetokenizedBatch) -> Tensor:
        single = made.spans.one_to_one()
        device = batch.labels.device
        ours, theirs = (
            torch.from_numpy(each).to(device) for each in (single.first, single.other_first)
        )
        # The first token of a piece is predicted by nothing.
        follows = (batch.position_ids.flatten()[ours] > 0) & (
            made.batch.position_ids.flatten()[theirs] > 0
        )
        wanted = self._other_of[batch.input_ids.flatten()[ours]]
        same = wanted == made.batch.input_ids.flatten()[theirs]
        ours, theirs = ours[follows & same], theirs[follows & same]
        places = torch.full_like(batch.labels, -1)
        places[ours - 1] = theirs - 1
        return places

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        found = self.teacher.tokenizer()
        if found is None:
            raise RunError(
                f"the teacher {self.teacher.name!r} has no tokenizer of its own; use it without "
                "`aligned`"
            )
        return found

    def _width(self, ids: int, device: torch.device) -> int:
        """The ids that the teacher's tokenizer and its head both have."""
        config = self.teacher.architecture(device)
        rows = getattr(config and config.get_text_config(), "vocab_size", None)
        return min(ids, rows) if rows is not None else ids


def _mass(logs: Tensor) -> Tensor:
    """The log of their sum [n]; finite where there are none."""
    return logs.logsumexp(-1).clamp(min=-100.0)


def _temperatures(recipe: Stage) -> Sequence[float]:
    """Those other than 1 that the recipe's losses ask for."""
    asked = {at for term in recipe.terms for at in term.loss.temperatures()}
    return sorted(asked - {1.0})


@hookimpl
def kdcore_teachers() -> Sequence[type[Teacher]]:
    """The one above."""
    return [Aligned]
