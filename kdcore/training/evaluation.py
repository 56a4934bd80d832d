"""Evaluation on held-out tokens: in chunks, sharded over processes, each row once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kdcore.api.loss import Loss
from kdcore.api.teacher import Teacher
from kdcore.data.batch import Batch, Row, SparseLogits, columns_of
from kdcore.data.collate import Collate, sent
from kdcore.data.columns import values_of_column
from kdcore.data.given import as_rows
from kdcore.data.where import Value
from kdcore.document_losses import DocumentLosses, document_losses
from kdcore.guard import call_checked, plugin_errors
from kdcore.models.causal_lm import eval_mode
from kdcore.models.head import chunk_size, nll_of
from kdcore.objective.losses import per_token
from kdcore.objective.sparse import argmax_ids
from kdcore.objective.teachers import known_to, may_not_know, read_outputs
from kdcore.terminal.bars import progress

if TYPE_CHECKING:
    from kdcore.api.run import Run
    from kdcore.objective.compiled_losses import PerToken


def run_evals(run: Run) -> dict[str, float | str]:
    """The scores of all evals in the run's recipe."""
    scores: dict[str, float | str] = {}
    for component in run.recipe.evals:
        with progress(f"evaluating {component.name}"):
            found = call_checked(component, "measure", run, of=Mapping)
        for name, score in found.items():
            with plugin_errors(
                component, "measure"
            ):  # converts numbers of other libraries to Python's
                scores[str(name)] = score if isinstance(score, str) else float(score)
    return scores


def evaluate(
    run: Run,
    rows: Sequence[Row],
    losses: Sequence[Loss],
    teacher: Teacher | None,
    by: str | None = None,
    documents: DocumentSums | None = None,
    compiled: PerToken | None = None,
) -> Mapping[str, float]:
    """See `Run.evaluate`; `compiled` computes the losses, if it is given."""
    groups = [] if by is None else values_of_column(rows.columns(), by)  # type: ignore[attr-defined]
    sums = _Sums(run, losses, teacher, by, groups, documents, compiled)
    collate = Collate(rows.split, run.vocabulary, run.device)  # type: ignore[attr-defined]
    with eval_mode(run.student):
        for some in _turns(run, rows.lengths, run.micro_batch):  # type: ignore[attr-defined]
            sums.add(collate(rows.some(some.tolist()) if len(some) else []))  # type: ignore[attr-defined]
    return sums.everywhere()


def _turns(run: Run, lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """This process's rows, `size` at a time, the longest first over all processes.

    With a sharded model every process has the same number of turns, some of them without rows.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    groups = [longest_first[at : at + size] for at in range(0, len(lengths), size)]
    mine = groups[run.process :: run.processes]
    return [*mine, *[longest_first[:0]] * (run.most(len(mine)) - len(mine))]


def log_likelihoods(run: Run, rows: Sequence[Row], batch_size: int) -> list[float]:
    """See `Run.log_likelihoods`."""
    dataset = as_rows(rows, "given")
    collate = Collate(dataset.split, run.vocabulary, run.device)
    totals = torch.zeros(len(dataset), dtype=torch.float64, device=run.device)
    with eval_mode(run.student):
        for group in _turns(run, dataset.lengths, batch_size):
            batch = collate(dataset.some(group.tolist()) if len(group) else [])
            whose = torch.from_numpy(group).to(run.device)
            for at, student in _chunks(run, batch):
                nll = nll_of(student, batch.labels[at])
                totals.index_add_(0, whose[at // batch.input_ids.shape[1]], -nll.double())
    if run.processes > 1:
        torch.distributed.all_reduce(totals)
    likelihoods: list[float] = totals.tolist()
    return likelihoods


def _chunks(run: Run, batch: Batch, size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """A batch's valid positions in chunks, with the student's logits there [n, V]."""
    model = run.language_model
    with run.autocast():
        states = model.states(batch)
    if not len(batch.valid):
        return
    head = model.head()
    for at in torch.split(batch.valid, size or chunk_size(batch.vocabulary, run.device)):
        yield at, head(states[at])[:, : batch.vocabulary]


class DocumentSums:
    """Tokens, bytes and nats of each document of a split, and a hash of its ids."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.sums = torch.zeros(count, 3, dtype=torch.float64, device=device)
        self.keys = torch.zeros(count, dtype=torch.int64, device=device)

    def add(self, batch: Batch, at: Tensor, values: Sequence[Tensor]) -> None:
        """Add some flat positions: a count of one, and bytes and nats of each predicted token."""
        document, offset = (
            each.reshape(-1)[at + 1].long() for each in (batch.document, batch.offset)
        )
        self.sums.index_add_(0, document, torch.stack(list(values), 1))
        # Integer sums do not depend on the order, and wrap around on overflow.
        self.keys.index_add_(0, document, (batch.labels[at] + 1) ** 2 * (offset + 2))

    def reduce(self) -> None:
        """Sum over all processes."""
        torch.distributed.all_reduce(self.sums)
        torch.distributed.all_reduce(self.keys)

    def found(self) -> DocumentLosses:
        """The sums, on the host."""
        return document_losses(self.sums.cpu().numpy(), self.keys.cpu().numpy())


def _keys(losses: Sequence[Loss]) -> list[str]:
    """Each loss's name; "kl.2" for a second "kl", like the terms of a recipe."""
    taken, keys = {"tokens", "bytes", "nll", "agreement"}, []
    for loss in losses:
        every = (loss.name if n == 1 else f"{loss.name}.{n}" for n in count(1))
        keys.append(next(key for key in every if key not in taken))
        taken.add(keys[-1])
    return keys


class _Sums:
    """Named float64 sums."""

    def __init__(
        self,
        run: Run,
        losses: Sequence[Loss],
        teacher: Teacher | None,
        by: str | None = None,
        groups: Sequence[Value] = (),
        documents: DocumentSums | None = None,
        compiled: PerToken | None = None,
    ) -> None:
        self.run, self.losses, self.teacher = run, losses, teacher
        self.by, self.groups, self.documents = by, groups, documents
        self.bytes = torch.from_numpy(run.bytes_per_id).to(run.device)
        self.partial = teacher if teacher and may_not_know(teacher) else None
        self._compiled = compiled
        compared = [*["agreement"] * bool(teacher), *["known"] * bool(self.partial)]
        self.names = ["tokens", "bytes", "nll", *_keys(losses), *compared]
        self.total = torch.zeros(len(self.names), dtype=torch.float64, device=run.device)
        # The last group holds documents without a value, and is not reported.
        self.each = self.total.new_zeros(len(groups) + 1, len(self.names))

    def add(self, batch: Batch) -> None:
        """Add one batch."""
        other = read_outputs(self.teacher, batch) if self.teacher else None
        known = torch.ones_like(batch.labels, dtype=torch.bool)
        if self.partial:
            known[batch.valid] = known_to(self.partial, batch)
        group = self._groups_of(batch)
        for at, student in _chunks(self.run, batch, self.run.chunk if self._compiled else None):
            values = self._chunk(student, other and other(at), batch.labels[at], known[at])
            self.total += torch.stack([value.sum() for value in values])
            if group is not None:
                self.each.index_add_(0, group[at], torch.stack(values, 1))
            if self.documents is not None:
                self.documents.add(batch, at, values[:3])

    def _groups_of(self, batch: Batch) -> Tensor | None:
        """The index of the document's value for each flat position; None where not grouped."""
        if self.by is None:
            return None
        codes = {value: n for n, value in enumerate(self.groups)}
        values, slots = columns_of(batch).values(self.by)
        each = [len(codes) if value is None else codes[value] for value in values]
        return sent(np.array(each, np.int64)[slots], batch.valid.device)

    def _chunk(
        self,
        student: Tensor,
        teacher: Tensor | SparseLogits | None,
        labels: Tensor,
        known: Tensor,
    ) -> list[Tensor]:
        values = [
            torch.ones_like(labels),
            self.bytes[labels],
            nll_of(student, labels),
            *self._values(student, teacher, labels, known),
        ]
        if teacher is not None:
            values.append((student.argmax(-1) == argmax_ids(teacher)) & known)
        if self.partial:
            values.append(known)
        return [value.double() for value in values]

    def _values(
        self,
        student: Tensor,
        teacher: Tensor | SparseLogits | None,
        labels: Tensor,
        known: Tensor,
    ) -> list[Tensor]:
        """Each loss's values [n]; 0 where it needs a teacher that does not cover the token."""
        if self._compiled is not None:
            each = self._compiled(student, teacher, labels)
        else:
            each = [per_token(loss, student, teacher, labels) for loss in self.losses]
        return [
            torch.where(known, values, 0) if loss.needs_teacher else values
            for loss, values in zip(self.losses, each, strict=True)
        ]

    def everywhere(self) -> Mapping[str, float]:
        """The sums over all processes."""
        if self.run.processes > 1:
            torch.distributed.all_reduce(self.total)
            if self.by is not None:
                torch.distributed.all_reduce(self.each)
            if self.documents is not None:
                self.documents.reduce()
        found = dict(zip(self.names, self.total.tolist(), strict=True))
        for value, sums in zip(self.groups, self.each.tolist(), strict=False):
            names = [f"{name}/{value}" for name in self.names]
            found |= dict(zip(names, sums, strict=True))
        return found
