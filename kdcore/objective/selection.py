"""Selection: scores of an optimizer step's tokens, and which are kept.

With one micro-batch and one process the training forward itself is scored. Otherwise the step is
scored first without gradient, ranked over all processes, then trained. With `scope =
"micro_batch"` each micro-batch ranks its own tokens in its training forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kdcore.api.contracts import Loss, Selection, Teacher, Tokens
from kdcore.data.batch import LogitsAt
from kdcore.distributed import Gather, Total, alone
from kdcore.errors import PluginError
from kdcore.guard import blame, described
from kdcore.models.causal_lm import LanguageModel
from kdcore.models.head import chunk_size, nll_from_logits, unrounded
from kdcore.objective.losses import per_token
from kdcore.objective.objective import Choose, Seen
from kdcore.objective.teachers import Reading

if TYPE_CHECKING:
    from kdcore.api.contracts import Run


@dataclass(frozen=True, eq=False)
class Scored:
    """A micro-batch and the student's states [rows * time, H] on it, without gradient."""

    reading: Reading
    states: Tensor


@dataclass(frozen=True, eq=False)
class Ranked:
    """The scores of all processes' tokens [N], and which were kept."""

    scores: Tensor
    kept: Tensor


class StepTokens(Tokens):
    """The `Tokens` of a step, over the micro-batches that this process runs."""

    def __init__(
        self,
        parts: Sequence[Scored],
        student: LanguageModel,
        teacher: Teacher | None,
        *,
        step: int,
        seed: int,
        gather: Gather,
    ) -> None:
        self._parts, self._student, self._teacher = parts, student, teacher
        self._seed, self._gather = seed, gather
        self._student_nll: Tensor | None = None
        self._order = _order_of(parts)
        self._head: Callable[[Tensor], Tensor] | None = None
        self.step = step
        self.ranked: Ranked | None = None  # by the last `top`

    @property
    def labels(self) -> Tensor:
        """The id that each token's position predicts [n]."""
        return self._joined(
            [part.reading.batch.labels[part.reading.batch.valid] for part in self._parts]
        )

    @property
    def row(self) -> Tensor:
        """The index of its row in the optimizer step [n]."""
        return self._joined([self._place(part)[0] for part in self._parts])

    @property
    def position(self) -> Tensor:
        """The index of the predicting token in its row [n]."""
        return self._joined([self._place(part)[1] for part in self._parts])

    def student_nll(self) -> Tensor:
        """The student's negative log-likelihood of each label, in nats [n]."""
        if self._student_nll is None:
            self._student_nll = self._each(
                lambda part: nll_from_logits(self._logits(part), part.reading.batch)
            )
        return self._student_nll

    def nll(self, teacher: Teacher | None = None) -> Tensor:
        """A teacher's (by default the run's) negative log-likelihood of each label, in nats [n]."""
        asked = self._asked(teacher)
        if asked is self._teacher and asked.gives_logits():
            for part in self._parts:
                part.reading.logits_of(asked)  # kept for the losses, which would read it again
        return self._each(lambda part: part.reading.nll_of(asked))

    def score(self, loss: Loss, teacher: Teacher | None = None) -> Tensor:
        """Any loss as a score of each token, in chunks [n]."""
        asked = self._asked(teacher) if loss.needs_teacher else None

        def scores(part: Scored) -> Callable[[Tensor, Tensor], Tensor]:
            student = self._logits(part)
            other = part.reading.logits_of(asked) if asked is not None else None
            size = chunk_size(part.reading.batch.vocabulary, part.states.device)

            def at(positions: Tensor, labels: Tensor) -> Tensor:
                pieces = [
                    per_token(loss, student(some), other and other(some), label)
                    for some, label in zip(
                        torch.split(positions, size), torch.split(labels, size), strict=True
                    )
                ]
                return torch.cat(pieces)

            return at

        return self._each(scores)

    def top(self, scores: Tensor, share: float) -> Tensor:
        """The ceil(share x N) highest scores over all processes as a bool [n].

        N counts the valid tokens of the step. Ties go to the token that comes first; NaN is never
        kept.
        """
        everyone, first = self._gather(unrounded(scores))
        # A share such as 0.55 times 100 is a hair above 55: that hair is rounding, not a token.
        wanted = math.ceil(share * len(everyone) - 1e-9)
        # NaN becomes -inf, and a true -inf the lowest finite number.
        ranking = everyone.nan_to_num(nan=-math.inf).argsort(descending=True, stable=True)
        kept = torch.zeros_like(everyone, dtype=torch.bool)
        kept[ranking[:wanted]] = True
        kept &= ~everyone.isnan()
        self.ranked = Ranked(everyone, kept)
        return kept[first : first + len(scores)]

    def random(self) -> Tensor:
        """A number in [0, 1) for each token, from seed, step and its place in the step [n]."""
        return self._joined([self._drawn(part.reading) for part in self._parts])

    def _drawn(self, reading: Reading) -> Tensor:
        time = reading.batch.input_ids.shape[1]
        # A generator for each row: what it draws for a position hangs on nothing else in the step.
        generators = [np.random.default_rng([self._seed, self.step, row]) for row in reading.rows]
        each = [one.random(time, dtype=np.float32) for one in generators]
        flat = np.concatenate(each) if each else np.empty(0, np.float32)
        return torch.from_numpy(flat).to(reading.batch.valid.device)[reading.batch.valid]

    def _asked(self, teacher: Teacher | None) -> Teacher:
        asked = teacher or self._teacher
        assert asked is not None, "a recipe whose selection needs a teacher has one"
        return asked

    def _logits(self, part: Scored) -> LogitsAt:
        vocabulary = part.reading.batch.vocabulary
        head = self._head = self._head or self._student.head()
        return lambda positions: head(part.states[positions])[:, :vocabulary]

    def _each(self, make: Callable[[Scored], Callable[[Tensor, Tensor], Tensor]]) -> Tensor:
        def values(part: Scored) -> Tensor:
            batch = part.reading.batch
            return make(part)(batch.valid, batch.labels[batch.valid])

        with torch.no_grad():
            return self._joined([values(part) for part in self._parts])

    def _joined(self, values: Sequence[Tensor]) -> Tensor:
        """Each part's values [n] in the order of the step."""
        joined = torch.cat(list(values))
        return joined if self._order is None else joined[self._order]

    def by_part(self, values: Tensor) -> Sequence[Tensor]:
        """Values [n] in the order of the step, for each part in its own order."""
        if self._order is not None:
            values = torch.empty_like(values).index_copy_(0, self._order, values)
        return torch.split(values, [len(part.reading.batch.valid) for part in self._parts])

    @staticmethod
    def _place(part: Scored) -> tuple[Tensor, Tensor]:
        time = part.reading.batch.input_ids.shape[1]
        valid = part.reading.batch.valid
        return _rows_of(part)[valid // time], valid % time


def _rows_of(part: Scored) -> Tensor:
    return torch.tensor(part.reading.rows, dtype=torch.long, device=part.states.device)


def _order_of(parts: Sequence[Scored]) -> Tensor | None:
    """Where in the parts, laid end to end, each token of the step stands; None: just there."""
    rows = [row for part in parts for row in part.reading.rows]
    if rows == sorted(rows):
        return None
    return torch.cat([StepTokens._place(part)[0] for part in parts]).argsort(stable=True)


@dataclass(eq=False)
class Choices:
    """One step's: how each micro-batch learns what was kept, and what the log wants to know."""

    valid: Tensor  # over all processes
    each: list[Choose] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)  # this process's counts, as they are found
    ranked: Ranked | None = None  # the last scores, where a selection ranks by scores


def choose(
    run: Run, readings: Sequence[Reading], step: int, gather: Gather, total: Total
) -> Choices:
    """The choices of a step. Selections run without gradient."""
    here = sum(len(reading.batch.valid) for reading in readings)
    choices = Choices(total(torch.tensor(float(here), device=run.device)))
    selection = run.recipe.selection
    if selection is None:
        choices.each = [_all_of(choices.valid) for _ in readings]
    elif run.recipe.scope == "micro_batch":
        choices.each = [_in_forward(run, selection, r, step, choices) for r in readings]
    elif run.processes == 1 and len(readings) == 1:
        choices.each = [_in_forward(run, selection, readings[0], step, choices)]
    else:
        _ahead(run, selection, readings, step, gather, total, choices)
    return choices


def _all_of(valid: Tensor) -> Choose:
    return lambda states: Seen(None, valid, valid, valid)


def _in_forward(
    run: Run, selection: Selection, reading: Reading, step: int, choices: Choices
) -> Choose:
    """Score the states of the training forward. Ranking is within this micro-batch."""

    def found(states: Tensor) -> Seen:
        tokens = _tokens(run, [Scored(reading, states)], step, alone)
        keep = keep_of(selection, tokens)
        choices.ranked = tokens.ranked
        choices.kept.append(keep.sum())
        ranked = torch.tensor(len(keep), device=keep.device)
        (here,) = tokens.by_part(keep)
        return Seen(here, choices.valid, ranked, keep.sum())

    return found


def _ahead(
    run: Run,
    selection: Selection,
    readings: Sequence[Reading],
    step: int,
    gather: Gather,
    total: Total,
    choices: Choices,
) -> None:
    """Score every micro-batch first; one more trunk forward of the student."""
    with torch.no_grad():
        tokens = tokens_of(run, readings, step, gather)
        keep = keep_of(selection, tokens)
        choices.ranked = tokens.ranked
        choices.kept.append(keep.sum())
        kept = total(keep.sum().float())
    choices.each = [
        _known(Seen(some, choices.valid, choices.valid, kept)) for some in tokens.by_part(keep)
    ]


def tokens_of(run: Run, readings: Sequence[Reading], step: int, gather: Gather) -> StepTokens:
    """The tokens of a step; runs the student's trunk over them. Called without gradient."""
    with run.autocast():
        parts = [Scored(r, run.language_model.states(r.batch)) for r in readings]
    return _tokens(run, parts, step, gather)


def _known(seen: Seen) -> Choose:
    return lambda states: seen


def _tokens(run: Run, parts: Sequence[Scored], step: int, gather: Gather) -> StepTokens:
    return StepTokens(
        parts, run.language_model, run.teacher, step=step, seed=run.seed, gather=gather
    )


def keep_of(selection: Selection, tokens: Tokens) -> Tensor:
    """What a selection keeps of the tokens [n], checked."""
    with blame(selection, "keep"):
        keep = selection.keep(tokens)
    wanted = (len(tokens.labels),)
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool or keep.shape != wanted:
        found = (
            f"{keep.dtype} of shape {tuple(keep.shape)}"
            if isinstance(keep, Tensor)
            else type(keep).__name__
        )
        raise PluginError(
            f"{described(selection)} returned {found} from keep, expected a bool tensor of "
            f"shape {wanted}"
        )
    return keep
