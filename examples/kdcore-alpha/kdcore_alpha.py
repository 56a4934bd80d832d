"""One component of each of the five common kinds, as an example to copy from.

Everything is imported from `kdcore` and torch. Nothing here shifts labels, masks padding, averages
over tokens or moves tensors between devices: the engine does.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from kdcore import (
    Batch,
    Data,
    Logger,
    LogitsFn,
    Loss,
    Record,
    Run,
    Selection,
    Teacher,
    Tokens,
    component,
    hookimpl,
)


@component
class Counting(Data):
    """Sentences that count upwards, such as "3, 4, 5, 6, 7 and then 8."."""

    name = "counting"
    documents: int = 400

    def texts(self, split: str) -> Iterable[str]:
        """Every tenth sentence is for validation, the others are for training."""
        wanted = split == "validation"
        return (text for i, text in enumerate(self._sentences()) if (i % 10 == 0) == wanted)

    def _sentences(self) -> Iterator[str]:
        for first in range(self.documents):
            *most, last = range(first, first + 3 + first % 5)
            yield f"{', '.join(map(str, most))} and then {last}."


@component
class Bigram(Teacher):
    """A bigram model counted on the training rows; it has no weights to load.

    pseudocount: added to every count, so that no token has probability 0.
    """

    name = "bigram"
    pseudocount: float = 0.1

    def load(self, run: Run) -> None:
        """Count the token pairs, once."""
        counts = torch.full((run.vocabulary, run.vocabulary), self.pseudocount)
        for row in run.rows("train"):
            ids = torch.as_tensor(row["input_ids"], dtype=torch.long)
            counts.index_put_((ids[:-1], ids[1:]), torch.tensor(1.0), accumulate=True)
        self._logits = counts.log().to(run.device)  # [V, V]

    def read(self, batch: Batch) -> LogitsFn:
        """The logits after the token at each position."""
        ids = batch.input_ids.flatten()
        return lambda positions: self._logits[ids[positions]]


@component
class Hellinger(Loss):
    """The squared Hellinger distance of the two distributions: 0 where equal, at most 1."""

    name = "hellinger"
    temperature: float = 1.0

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """1 - sum of sqrt(p q), in log space so that small probabilities keep their gradient."""
        assert teacher is not None, "the engine hands a teacher to a loss that needs one"
        q, p = ((logits / self.temperature).log_softmax(-1) for logits in (student, teacher))
        return 1 - ((p + q) / 2).exp().sum(-1)

    def formula(self) -> str:
        """The formula as `kdcore plan` prints it."""
        return f"hellinger(p({self.temperature:g}), q({self.temperature:g}))"


@component
class Teachable(Selection):
    """The tokens that the run's teacher predicts best: the ones it can teach."""

    name = "teachable"
    share: float = 0.8  # of the valid tokens; `keep` would hide the method

    def needs_teacher(self) -> bool:
        """Makes `kdcore check` require a `[teacher]`."""
        return True

    def keep(self, tokens: Tokens) -> Tensor:
        """The tokens with the lowest teacher loss."""
        return tokens.top(-tokens.nll(), self.share)


@component
class Curve(Logger):
    """Writes step and loss to a spreadsheet file in the run folder."""

    name = "curve"
    separator: Literal["comma", "tab"] = "comma"

    @hookimpl
    def kdcore_run_start(self, run: Run) -> None:
        """Start the file. Only the first process writes."""
        if run.main and run.step == 0:
            self._append(run, ("step", "loss"))

    @hookimpl
    def kdcore_log(self, run: Run, record: Record) -> None:
        """Append a line."""
        if run.main:
            self._append(run, (record.step, record.loss))

    def _append(self, run: Run, line: Sequence[object]) -> None:
        delimiter = "," if self.separator == "comma" else "\t"
        with (run.folder / "curve.csv").open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=delimiter).writerow(line)


@hookimpl
def kdcore_data() -> Sequence[type[Data]]:
    """`[data] use = "counting"`."""
    return [Counting]


@hookimpl
def kdcore_teachers() -> Sequence[type[Teacher]]:
    """`[teacher] use = "bigram"`."""
    return [Bigram]


@hookimpl
def kdcore_losses() -> Sequence[type[Loss]]:
    """`[[loss]] use = "hellinger"`."""
    return [Hellinger]


@hookimpl
def kdcore_selections() -> Sequence[type[Selection]]:
    """`[selection] use = "teachable"`."""
    return [Teachable]


@hookimpl
def kdcore_loggers() -> Sequence[type[Logger]]:
    """`[[log]] use = "curve"`."""
    return [Curve]
