"""Fill the caches of a stage ahead of its run, and compare them with the live teachers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdcore import Batch, Row, Run, Stage, describe, iter_batches
from kdcore_cached.catalogue import Kept
from kdcore_cached.teacher import CachedTeacher


@dataclass(frozen=True)
class Difference:
    """The difference between stored and live outputs on a sample of tokens."""

    tokens: int  # compared
    missing: int  # sampled but not stored
    mean: float
    largest: float
    tolerance: float

    @property
    def is_small(self) -> bool:
        """Whether rounding can explain it."""
        return self.largest <= self.tolerance


@dataclass(frozen=True)
class Work:
    """The cache of one teacher for one split."""

    run: Run
    teacher: CachedTeacher
    rows: Sequence[Row]
    split: str

    @property
    def label(self) -> str:
        """The wrapped teacher, as given in the recipe."""
        return describe(self.teacher.teacher)

    @property
    def tokens(self) -> int:
        """Slots of the store: all tokens of the split, whichever its rows predict."""
        return int(self.run.laid(self.split).split.lengths.sum())

    @property
    def folder(self) -> Path:
        """Where the store is, or would be."""
        return self.teacher.folder(self.run.laid(self.split).split, self.run.vocabulary)

    @property
    def stored(self) -> int:
        """Slots that are filled already."""
        kept = Kept(self.folder)
        return 0 if kept.error() else kept.filled()

    @property
    def bytes_per_token(self) -> int:
        """Bytes on disk."""
        return self.teacher.kind_for(self.run.vocabulary).bytes_per_token

    def build(self, done: Callable[[int], None]) -> tuple[Kept, int]:
        """Store what is missing, reporting progress in rows; return the number of new tokens."""
        asked = new = 0
        for batch in iter_batches(self.run, self.rows):
            store = self.teacher.store(batch)
            asked += len(batch.valid)
            new += int(store.missing(store.slots(batch)).sum())
            self.teacher.complete(batch)
            done(len(batch.input_ids))
        kept = Kept(self.folder)
        kept.tell(asked=asked)
        return kept, new

    def compare(self, tokens: int) -> Difference:
        """Compare stored and live outputs on rows of so many tokens, drawn with the run's seed."""
        order = np.random.default_rng(self.run.seed).permutation(len(self.rows))
        apart, missing = np.zeros(0), 0
        for index in order.tolist():
            if len(apart) + missing >= tokens:
                break
            for batch in iter_batches(self.run, self.rows[index : index + 1]):
                found, absent = self._apart(batch)
                apart, missing = np.append(apart, found), missing + absent
        mean, largest = (float(apart.mean()), float(apart.max())) if len(apart) else (0.0, 0.0)
        tolerance = self.teacher.kind_for(self.run.vocabulary).tolerance
        return Difference(len(apart), missing, mean, largest, tolerance)

    def _apart(self, batch: Batch) -> tuple[np.ndarray, int]:
        """The difference of each token, and how many are missing; loads no teacher if all are."""
        store = self.teacher.store(batch)
        asked = store.missing(store.slots(batch))
        if asked.all():
            return np.zeros(0), len(asked)
        apart = [np.zeros(0)]
        for shown, live in self.teacher.live(batch):
            slots = store.slots(shown)
            there = ~store.missing(slots)
            stored = store.take(slots[there])
            apart.append(store.kind.differs(stored, [each[there] for each in live]))
        return np.concatenate(apart), int(asked.sum())


def cached_in(stage: Stage) -> list[CachedTeacher]:
    """The cached teachers of a stage, including nested ones."""
    return [one for one in stage.components() if isinstance(one, CachedTeacher)]


def works(run: Run) -> Iterator[Work]:
    """The caches of a stage: for training, and for validation if evals need it."""
    for teacher in cached_in(run.recipe):
        teacher.load(run)
        yield Work(run, teacher, run.rows("train"), "train")
        if teacher is run.teacher and any(one.needs_teacher for one in run.recipe.evals):
            yield Work(run, teacher, run.rows("validation"), "validation")
