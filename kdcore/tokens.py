"""The tokens of an optimizer step as a selection sees them: flat, lazy, ranked over processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from kdcore.api import Loss, Teacher
from kdcore.batch import AnswersAt, Batch, LogitsAt
from kdcore.gathering import Gather
from kdcore.head import chunk_size
from kdcore.language_model import LanguageModel
from kdcore.objective import per_token
from kdcore.products import unrounded
from kdcore.reading import answers, nll_from_logits, read_nll


class Reading:
    """One micro-batch with what was read of it, so that no teacher runs twice over it."""

    def __init__(self, batch: Batch, rows: Sequence[int]) -> None:
        self.batch = batch
        self.rows = rows  # the place of each of its rows in the optimizer step
        self._read: dict[int, AnswersAt] = {}

    def logits_of(self, teacher: Teacher) -> AnswersAt:
        """The teacher's logits by flat position; its trunk runs at the first call."""
        if id(teacher) not in self._read:
            self._read[id(teacher)] = answers(teacher, self.batch)
        return self._read[id(teacher)]

    def forget(self) -> None:
        """Let go of what teachers keep for it."""
        self._read.clear()

    def nll_of(self, teacher: Teacher) -> Callable[[Tensor, Tensor], Tensor]:
        """The teacher's negative log-likelihoods, from its logits if those were read already."""
        if id(teacher) in self._read and teacher.ids_known() is None:
            return nll_from_logits(cast(LogitsAt, self._read[id(teacher)]), self.batch)
        return read_nll(teacher, self.batch)


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


class Tokens:
    """This process's valid tokens of the optimizer step [n]; what nobody asks for costs nothing.

    They come in the order of the step's rows, whichever rows went through the models together.
    """

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
    return torch.cat([Tokens._place(part)[0] for part in parts]).argsort(stable=True)
