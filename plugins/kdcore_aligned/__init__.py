"""A teacher with another tokenizer, at the tokens that both tokenizers share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from kdcore_sft import DIALOGUE, Reteller
from pydantic import Field
from torch import Tensor

from kdcore import (
    Batch,
    Completion,
    GappedLogits,
    OwnVocabulary,
    Prompt,
    RetokenizedBatch,
    Retokenizer,
    Run,
    RunError,
    Sampling,
    SparseLogits,
    Stage,
    Teacher,
    TeacherOutputs,
    component,
    hookimpl,
    ids_of_same_bytes,
    on_host,
    read_nll,
    read_outputs,
)
from kdcore_aligned.dialogues import OwnTemplate, end_of_turns, first_dialogue
from kdcore_aligned.spans import own_vocabulary, predicted, sent
from kdcore_aligned.writing import Translator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RULES = 3


class _Both(NamedTuple):
    """The teacher's batch, and for each flat student position the teacher's position or -1."""

    other: RetokenizedBatch
    places_on_host: np.ndarray
    places: Tensor


@component
class Aligned(Teacher):
    """A teacher that reads the same bytes in its own tokenizer's ids.

    Where a student token is exactly one teacher token, it gives the teacher's distribution over the
    ids whose bytes both vocabularies have, with one bucket for all others. Elsewhere it knows
    nothing, and losses that need a teacher skip the token. A teacher with all of the student's ids
    gives plain logits.
    """

    name = "aligned"
    own_tokens: ClassVar[bool] = True
    teacher: Teacher
    template: Annotated[
        str, Field(description='of dialogues: "auto" its own, "none" the student\'s, or Jinja')
    ] = "auto"

    def __post_init__(self) -> None:
        self._retokenizer: Retokenizer | None = None
        self._ids: tuple[Tensor, Tensor] | None = None  # [k]: the student's, the teacher's
        self._known: int | None = None
        self._dialogues: OwnTemplate | None = None
        self._translator: Translator | None = None
        self._temperatures: Sequence[float] = ()
        self._made: WeakKeyDictionary[Batch, _Both] = WeakKeyDictionary()

    def faults(self, recipe: Stage) -> Iterable[str]:
        """Reject an inner teacher without logits of all its ids."""
        if not self.teacher.gives_logits() or self.teacher.is_estimate():
            yield f"the teacher {self.teacher.name!r} within gives no distribution"
        if self.teacher.own_tokens:
            yield f"the teacher {self.teacher.name!r} within reads tokens of its own already"
        over_spans = [term.loss.name for term in recipe.terms if term.loss.own_vocabulary]
        if over_spans and self.teacher.ids_known() is not None:
            yield (
                f"the loss {over_spans[0]!r} compares all ids of the teacher, and "
                f"{self.teacher.name!r} within knows some of each position"
            )
        if self.teacher.bytes_per_token():
            yield (
                f"the teacher {self.teacher.name!r} within stores what it says of the student's "
                f"tokens: put {self.teacher.name!r} around 'aligned'"
            )

    def load(self, run: Run) -> None:
        """Compare both vocabularies; the engine has loaded the inner teacher."""
        theirs = self._tokenizer()
        self._retokenizer = Retokenizer(run.tokenizer, theirs)
        self._others = min(self._size("vocab_size", run.device) or len(theirs), len(theirs))
        self._positions = self._size("max_position_embeddings", run.device)
        shared = dict(ids_of_same_bytes(self._retokenizer, run.vocabulary, self._others))
        ends = self._read_dialogues(run, theirs, shared)
        self._translator = Translator(self._retokenizer, self._dialogues, ends)
        if not shared:
            raise RunError("student and teacher share no id that stands for the same bytes")
        self._ids = (
            torch.tensor([*shared], device=run.device),
            torch.tensor([*shared.values()], device=run.device),
        )
        self._table = np.full(run.vocabulary, -1)
        self._table[[*shared]] = [*shared.values()]
        self._other_of = torch.from_numpy(self._table).to(run.device)
        self._mine = torch.full((self._others,), -1, device=run.device)
        self._mine[self._ids[1]] = self._ids[0]
        few = self.teacher.ids_known()
        self._known = few or (None if len(shared) == run.vocabulary else len(shared))
        self._temperatures = _temperatures(run.recipe)

    def optional_columns(self) -> Sequence[str]:
        """The dialogues, unless the teacher reads the student's template."""
        return () if self.template == "none" else (DIALOGUE,)

    def _read_dialogues(
        self, run: Run, theirs: PreTrainedTokenizerBase, shared: dict[int, int]
    ) -> tuple[int, int] | None:
        """Prepare to render dialogues, if any, and equate the tokens that end their turns.

        Returns these tokens, where they are known.
        """
        found = None if self.template == "none" or run.data.streams else first_dialogue(run)
        if found is None:
            return None
        assert self._retokenizer is not None
        reteller = Reteller(theirs, self.template)
        self._dialogues = OwnTemplate(reteller, self._retokenizer)
        pair = end_of_turns(*found, reteller)
        if pair is not None and pair[0] < run.vocabulary and pair[1] < self._others:
            for ours in [ours for ours, other in shared.items() if other == pair[1]]:
                del shared[ours]
            shared[pair[0]] = pair[1]
        return pair

    def ids_known(self) -> int | None:
        """Those of the inner teacher, or the ids that both vocabularies share; 0 before loading."""
        return (self.teacher.ids_known() or 0) if self._retokenizer is None else self._known

    def knows_others_at(self, temperature: float) -> bool:
        """At any temperature, if the inner teacher gives the logits of all its ids."""
        return temperature == 1 or self.teacher.ids_known() is None

    def gives_losses(self) -> bool:
        """As the inner teacher: a known token is one of its own."""
        return self.teacher.gives_losses()

    def nll(self, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
        """The teacher's own losses of the same tokens; NaN where it knows nothing."""
        both = self._of(batch)
        at = read_nll(self.teacher, both.other.batch)

        def nll(positions: Tensor, labels: Tensor) -> Tensor:
            known = both.places[positions]
            theirs = self._other_of[labels]
            found = at(known.clamp(min=0), theirs.clamp(min=0))
            return found.where((known >= 0) & (theirs >= 0), math.nan)

        return nll

    def known(self, batch: Batch) -> Tensor:
        """Which valid tokens are one token on both sides, bool [valid]. Computed on the host."""
        both = self._of(batch)
        return torch.from_numpy(both.places_on_host[on_host(batch).valid] >= 0)

    def prefetch(self, batches: Sequence[Batch]) -> None:
        """Announce its own batches to the inner teacher."""
        self.teacher.prefetch([self._of(batch).other.batch for batch in batches])

    def prefetches(self) -> bool:
        """As the inner teacher."""
        return self.teacher.prefetches()

    def read(self, batch: Batch) -> TeacherOutputs:
        """Let the teacher read its own batch, then map its positions to the student's."""
        both = self._of(batch)
        at = read_outputs(self.teacher, both.other.batch)
        return lambda positions: self._outputs(at(both.places[positions].clamp(min=0)))

    def own_vocabulary(self, batch: Batch) -> OwnVocabulary:
        """The teacher's own logits at the first token of each span."""
        assert self._ids is not None, "a teacher is read after it was loaded"
        return own_vocabulary(self.teacher, batch, self._of(batch).other, self._ids)

    def writes(self) -> bool:
        """Whether the inner teacher does."""
        return self.teacher.writes()

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Sequence[Completion]:
        """What the inner teacher generates from the same text, in the student's ids.

        Dialogues are prompted in its own chat template.
        """
        assert self._translator is not None, "a teacher writes after it was loaded"
        return self._translator.generate(self.teacher, prompts, sampling, self._others)

    def fingerprint(self) -> str:
        """The inner teacher, which includes its tokenizer, and a different chat template.

        The number is that of the rules by which text reaches the teacher: caches of other rules
        are filled again.
        """
        more = "" if self.template == "auto" else f", template={self.template!r}"
        return f"aligned({_RULES}, {self.teacher.fingerprint()}{more})"

    def _outputs(self, said: Tensor | SparseLogits) -> Tensor | SparseLogits:
        """The inner teacher's outputs, in the student's ids."""
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
        """Those of its few ids that the student has, the likeliest first; the rest are others."""
        ids = torch.where(said.ids < 0, -1, self._mine[said.ids.clamp(min=0)])
        logs = said.log_probabilities
        known = logs[:, :-1].masked_fill(ids < 0, -math.inf)
        unknown = torch.cat([logs[:, :-1].masked_fill(ids >= 0, -math.inf), logs[:, -1:]], -1)
        known, order = known.sort(dim=-1, descending=True, stable=True)
        given = torch.cat([known.clamp(min=-100.0), _mass(unknown)[:, None]], -1)
        return GappedLogits(ids.gather(1, order), given)

    def _of(self, batch: Batch) -> _Both:
        """The teacher's batch, and the student positions in it."""
        if batch not in self._made:
            assert self._retokenizer is not None, "a teacher is read after it was loaded"
            rewrite = partial(self._dialogues.piece, batch) if self._dialogues else None
            longest = self.teacher.max_input_length() or self._positions
            made = self._retokenizer(batch, self._others, rewrite, longest)
            places = self._places(batch, made)
            self._made[batch] = _Both(made, places, sent(places, batch.labels.device))
        return self._made[batch]

    def _places(self, batch: Batch, made: RetokenizedBatch) -> np.ndarray:
        """The teacher's position for each flat student position, or -1."""
        single = predicted(batch, made).one_to_one()
        ours, theirs = on_host(batch), on_host(made.batch)
        wanted = self._table[ours.input_ids[single.first]]
        same = wanted == theirs.input_ids[single.other_first]
        places = np.full(len(ours.input_ids), -1)
        places[single.first[same] - 1] = single.other_first[same] - 1
        return places

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        found = self.teacher.tokenizer()
        if found is None:
            raise RunError(
                f"the teacher {self.teacher.name!r} has no tokenizer of its own; use it without "
                "`aligned`"
            )
        return found

    def _size(self, name: str, device: torch.device) -> int | None:
        """A size in the config of the teacher's model, where it has one."""
        config = self.teacher.architecture(device)
        found: int | None = getattr(config and config.get_text_config(), name, None)
        return found


def _mass(logs: Tensor) -> Tensor:
    """The log of the summed probabilities [n]; finite for an empty sum."""
    return logs.logsumexp(-1).clamp(min=-100.0)


def _temperatures(recipe: Stage) -> Sequence[float]:
    """The temperatures other than 1 in the recipe's losses."""
    asked = {at for term in recipe.terms for at in term.loss.temperatures()}
    return sorted(asked - {1.0})


@hookimpl
def kdcore_teachers() -> Sequence[type[Teacher]]:
    """The teacher `aligned`."""
    return [Aligned]
