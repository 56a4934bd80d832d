"""The tokens of an optimizer step, scored and summed on demand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdcore.api.loss import Loss, Term
from kdcore.api.schedule import Scheduled, value_now
from kdcore.api.teacher import Teacher
from kdcore.api.tokens import Tokens
from kdcore.data.batch import OLD_LOG_PROBS, LogitsFn, columns_of
from kdcore.data.collate import sent
from kdcore.data.where import Value, categories_among
from kdcore.distributed import Gather, alone
from kdcore.errors import UsageError
from kdcore.guard import describe_component
from kdcore.models.causal_lm import LanguageModel
from kdcore.models.completions import ANSWERS, FIRST
from kdcore.models.head import chunk_size, nll_from_logits, upcast
from kdcore.objective.losses import per_token
from kdcore.objective.objective import TokenMask
from kdcore.objective.readings import MicroBatch, View
from kdcore.objective.teachers import has_own_vocabulary, may_skip


class ScoredBatch:
    """A micro-batch and the student's states [rows * time, H] on it, without gradient.

    `states` may be a function, called at first use: then the student's trunk runs only if needed.
    """

    def __init__(self, reading: MicroBatch, states: Tensor | Callable[[], Tensor]) -> None:
        self.reading = reading
        self._states = states

    @property
    def states(self) -> Tensor:
        """[rows * time, H]."""
        if not isinstance(self._states, Tensor):
            self._states = self._states()
        return self._states


@dataclass(frozen=True, eq=False)
class RankedScores:
    """The scores of the tokens of all processes [N], and which were kept."""

    scores: Tensor
    kept: Tensor


@dataclass(frozen=True, eq=False)
class Chosen:
    """The result of the selection, for `PreparedLoss.prepare`."""

    terms: Sequence[Term]
    counts: TokenMask  # in the order of the step


class StepTokens(Tokens):
    """The `Tokens` of a step, over the micro-batches of this process."""

    def __init__(
        self,
        parts: Sequence[ScoredBatch],
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
        self._categories: dict[str, list[str]] = {}
        self.step = step
        self.ranked: RankedScores | None = None  # by the last `top`
        self._top: tuple[Tensor, int] | None = None  # its result, and an upper bound
        self.chosen: Chosen | None = None  # set after the selection

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

    @property
    def document(self) -> Tensor:
        """The document of each token in its split [n]."""
        batches = [part.reading.batch for part in self._parts]
        return self._joined([batch.document.flatten()[batch.valid] for batch in batches])

    def column(self, name: str) -> Tensor:
        """Each token's document's value in a column [n]: numbers, or indices into `categories`."""
        texts = {text: code for code, text in enumerate(self.categories(name))}

        def number(value: Value | None) -> float:
            if texts:
                return texts.get(str(value), -1)
            return math.nan if value is None else float(value)

        def column_of(part: ScoredBatch) -> Tensor:
            values, slots = columns_of(part.reading.batch).values(name)
            numbers = np.array(list(map(number, values)), np.int64 if texts else np.float64)
            valid = part.reading.valid_on_host
            return sent(numbers[slots[valid]], part.reading.batch.valid.device)

        return self._joined([column_of(part) for part in self._parts])

    def categories(self, name: str) -> Sequence[str]:
        """The distinct texts of a column in this step, sorted; [] for numbers."""
        if name not in self._categories:
            values = [columns_of(part.reading.batch).values(name)[0] for part in self._parts]
            here = categories_among((value for column in values for value in column), name)
            self._categories[name] = sorted({*self._everyones(here)})
        return self._categories[name]

    def _everyones(self, texts: Sequence[str]) -> Sequence[str]:
        """The texts of all processes."""
        if self._gather is alone:
            return texts
        coded = "".join(f"{json.dumps(text)}\n" for text in texts).encode()
        device = self._parts[0].reading.batch.valid.device
        everyone, _ = self._gather(sent(np.array(list(coded), np.uint8), device))
        return [json.loads(line) for line in bytes(everyone.tolist()).splitlines()]

    def view(self, view: View) -> Tensor:
        """Which tokens are in a view, bool [n]."""
        return self._joined([part.reading.view(view) for part in self._parts])

    @property
    def prompt(self) -> Tensor:
        """The prompt of each token [n]; for tokens of data, their document."""
        document = self.document
        return torch.where(document < FIRST, document, FIRST + (document - FIRST) // ANSWERS)

    def seen(self, loss: Loss) -> Tensor:
        """Which tokens the term of this loss sees [n]."""
        term, chosen = self._term(loss)
        mask = chosen.counts.of(term.label).mask(term.on)
        return torch.ones_like(self.labels, dtype=torch.bool) if mask is None else mask > 0

    def count(self, loss: Loss) -> Tensor:
        """The denominator of the term of this loss, a scalar."""
        term, chosen = self._term(loss)
        return chosen.counts.of(term.label).count(term.on, torch.get_default_dtype())

    def by_document(self, values: Tensor) -> Tensor:
        """The sum over each token's document, in the step and all processes, float64 [n]."""
        return self._summed(values, self.document)

    def by_row(self, values: Tensor) -> Tensor:
        """The sum over each token's row, float64 [n]."""
        return self._summed(values, self.row)

    def _summed(self, values: Tensor, groups: Tensor) -> Tensor:
        """Sums in the order of the step, so that results are bit-identical for any world size."""
        everyone, first = self._gather(values.double())
        group, _ = self._gather(groups)
        _, place = torch.unique(group, return_inverse=True)
        sums = torch.zeros(len(everyone), dtype=torch.float64, device=values.device)
        sums.index_add_(0, place, everyone)
        return sums[place[first : first + len(values)]]

    def _term(self, loss: Loss) -> tuple[Term, Chosen]:
        chosen = self.chosen
        found = [term for term in chosen.terms if term.loss is loss] if chosen else []
        if chosen is None or not found:
            raise UsageError(
                f"{describe_component(loss)} is not a term of this step: seen and count are for "
                "`prepare`"
            )
        return found[0], chosen

    def student_nll(self) -> Tensor:
        """The student's negative log-likelihood of each label, in nats [n]."""
        if self._student_nll is None:
            self._student_nll = self._each(
                lambda part: nll_from_logits(self._logits(part), part.reading.batch)
            )
        return self._student_nll

    def old_log_probs(self) -> Tensor:
        """The log-probability of each label when drawn, in nats, float64 [n]; NaN: not recorded."""

        def recorded(part: ScoredBatch) -> Tensor:
            batch = part.reading.batch
            values = columns_of(batch).of_labels(OLD_LOG_PROBS)
            return sent(values[part.reading.valid_on_host], batch.valid.device)

        return self._joined([recorded(part) for part in self._parts])

    def nll(self, teacher: Teacher | None = None) -> Tensor:
        """The negative log-likelihood of each label by a teacher (default: the run's), nats [n]."""
        asked = self._asked(teacher)
        if asked is self._teacher and asked.gives_logits():
            for part in self._parts:
                part.reading.logits_of(asked)  # cached for the losses
        return self._known_only(self._each(lambda part: part.reading.nll_of(asked)), asked)

    def score(
        self, loss: Loss, teacher: Teacher | None = None, prepared: Tensor | None = None
    ) -> Tensor:
        """The values of any loss [n], computed in chunks."""
        asked = self._asked(teacher) if loss.needs_teacher else None
        parts = [None] * len(self._parts) if prepared is None else self.by_part(prepared)
        ready = dict(zip(map(id, self._parts), parts, strict=True))

        def scores(part: ScoredBatch) -> Callable[[Tensor, Tensor], Tensor]:
            student, mine = self._logits(part), ready[id(part)]
            other = part.reading.outputs_of(asked, [loss]) if asked is not None else None
            size = chunk_size(part.reading.batch.vocabulary, part.reading.batch.valid.device)

            def at(positions: Tensor, labels: Tensor) -> Tensor:
                chunks = torch.split(positions, size)
                inputs = [None] * len(chunks) if mine is None else torch.split(mine, size)
                each = zip(chunks, torch.split(labels, size), inputs, strict=True)
                return torch.cat(
                    [
                        per_token(loss, student(some), other and other(some), label, given)
                        for some, label, given in each
                    ]
                )

            return at

        values = self._each(scores)
        own = loss.own_vocabulary
        return values if asked is None else self._known_only(values, asked, own=own)

    def spans(self) -> Tensor:
        """Each token's span [n]."""
        found, first = [], 0
        for part in self._parts:
            spans = part.reading.own_of(self._asked(None)).spans.cpu().numpy()
            here = sent(spans, part.reading.batch.valid.device)
            found.append(torch.where(here >= 0, here + first, -1))
            first += len(here)
        return self._joined(found)

    def span_nll(self) -> Tensor:
        """The teacher's nll where a span begins [n, 2]."""
        with torch.no_grad():
            return self._joined([p.reading.own_of(self._asked(None)).nll() for p in self._parts])

    def shared_ids(self) -> tuple[Tensor, Tensor]:
        """Ids of the same text, the student's and the teacher's."""
        return self._parts[0].reading.own_of(self._asked(None)).shared

    def _known_only(self, values: Tensor, teacher: Teacher, *, own: bool = False) -> Tensor:
        """NaN where the teacher does not cover the token, so that it is never kept."""
        if not may_skip(teacher, own=own):
            return values
        view = View(None, teacher, own and has_own_vocabulary(teacher))
        return values.masked_fill(~self.view(view), math.nan)

    def top(self, scores: Tensor, share: Scheduled) -> Tensor:
        """The ceil(share * N) highest scores over all processes, bool [n].

        N is the number of valid tokens in the step. Ties go to the earlier token; NaN is never
        kept.
        """
        everyone, first = self._gather(upcast(scores))
        # 0.55 * 100 is slightly above 55 in floating point: without the 1e-9, ceil would give 56.
        wanted = math.ceil(value_now(share) * len(everyone) - 1e-9)
        # NaN becomes -inf, and -inf the lowest finite number, so NaN sorts last.
        ranking = everyone.nan_to_num(nan=-math.inf).argsort(descending=True, stable=True)
        kept = torch.zeros_like(everyone, dtype=torch.bool)
        kept[ranking[:wanted]] = True
        kept &= ~everyone.isnan()
        self.ranked = RankedScores(everyone, kept)
        here = kept[first : first + len(scores)]
        self._top = (here, min(wanted, len(scores)))
        return here

    def most_kept(self, keep: Tensor) -> int | None:
        """An upper bound of the tokens kept here if `keep` is the last `top`; else None."""
        return self._top[1] if self._top is not None and self._top[0] is keep else None

    def over_step(self, values: Tensor) -> Tensor:
        """The values of the tokens of all processes, in the order of the step [N]."""
        everyone, _ = self._gather(values)
        return everyone

    def random(self) -> Tensor:
        """A uniform number in [0, 1) for each token, from seed, step, row and position [n]."""
        return self._joined([self._drawn(part.reading) for part in self._parts])

    def _drawn(self, reading: MicroBatch) -> Tensor:
        time = reading.batch.input_ids.shape[1]
        # One generator per row: a token's number does not depend on the rest of the step.
        generators = [np.random.default_rng([self._seed, self.step, row]) for row in reading.rows]
        each = [one.random(time, dtype=np.float32) for one in generators]
        flat = np.concatenate(each) if each else np.empty(0, np.float32)
        return sent(flat, reading.batch.valid.device)[reading.batch.valid]

    def _asked(self, teacher: Teacher | None) -> Teacher:
        asked = teacher or self._teacher
        assert asked is not None, "a recipe whose selection needs a teacher has one"
        return asked

    def _logits(self, part: ScoredBatch) -> LogitsFn:
        vocabulary = part.reading.batch.vocabulary
        if self._student.sharded:
            _ = part.states  # gathers the head
        head = self._head = self._head or self._student.head()
        return lambda positions: head(part.states[positions])[:, :vocabulary]

    def _each(self, make: Callable[[ScoredBatch], Callable[[Tensor, Tensor], Tensor]]) -> Tensor:
        def values(part: ScoredBatch) -> Tensor:
            batch = part.reading.batch
            return make(part)(batch.valid, batch.labels[batch.valid])

        with torch.no_grad():
            return self._joined([values(part) for part in self._parts])

    def _joined(self, values: Sequence[Tensor]) -> Tensor:
        """The parts' values, concatenated in the order of the step [n]."""
        joined = torch.cat(list(values))
        return joined if self._order is None else joined[self._order]

    @property
    def parts(self) -> int:
        """The number of micro-batches."""
        return len(self._parts)

    def alone(self, part: int) -> StepTokens:
        """The tokens of one micro-batch, for ranking within it."""
        return StepTokens(
            [self._parts[part]],
            self._student,
            self._teacher,
            step=self.step,
            seed=self._seed,
            gather=alone,
        )

    def joined(self, values: Sequence[Tensor]) -> Tensor:
        """Values of each micro-batch in its own order -> [n] in the order of the step."""
        return self._joined(values)

    def by_part(self, values: Tensor) -> Sequence[Tensor]:
        """Values [n] in the order of the step -> those of each part in its own order."""
        if self._order is not None:
            values = torch.empty_like(values).index_copy_(0, self._order, values)
        return torch.split(values, [len(part.reading.batch.valid) for part in self._parts])

    @staticmethod
    def _place(part: ScoredBatch) -> tuple[Tensor, Tensor]:
        time = part.reading.batch.input_ids.shape[1]
        valid = part.reading.batch.valid
        return _rows_of(part)[valid // time], valid % time


def _rows_of(part: ScoredBatch) -> Tensor:
    return sent(np.array(part.reading.rows, dtype=np.int64), part.reading.batch.valid.device)


def _order_of(parts: Sequence[ScoredBatch]) -> Tensor | None:
    """The index of each token of the step in the concatenated parts; None: identical order."""
    rows = [row for part in parts for row in part.reading.rows]
    if rows == sorted(rows):
        return None
    return torch.cat([StepTokens._place(part)[0] for part in parts]).argsort(stable=True)
