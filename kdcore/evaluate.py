"""Sums over held-out tokens: in chunks, sharded over the processes, no row twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.api import Loss, Teacher
from kdcore.batch import Batch, Row
from kdcore.batches import Collate
from kdcore.head import chunk_size
from kdcore.objective import per_token
from kdcore.reading import read
from kdcore.vocabulary import bytes_per_id

if TYPE_CHECKING:
    from kdcore.run import Run


def evaluate(
    run: Run, rows: Sequence[Row], losses: Sequence[Loss], teacher: Teacher | None
) -> Mapping[str, float]:
    """See `Run.evaluate`."""
    sums = _Sums(run, losses, teacher)
    collate = Collate(rows.split, run.vocabulary, run.device)  # type: ignore[attr-defined]
    stride = run.micro_batch * run.processes
    with torch.no_grad(), evaluating(run.student):
        for start in range(run.process * run.micro_batch, len(rows), stride):
            some = [rows[n] for n in range(start, min(start + run.micro_batch, len(rows)))]
            sums.add(collate(some))
    return sums.everywhere()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of a block, each module put back as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class _Sums:
    """Float64 sums by name."""

    def __init__(self, run: Run, losses: Sequence[Loss], teacher: Teacher | None) -> None:
        self.run, self.losses, self.teacher = run, losses, teacher
        self.bytes = torch.from_numpy(bytes_per_id(run.tokenizer)).to(run.device)
        compared = ["agreement"] if teacher else []
        self.names = ["tokens", "bytes", "nll", *(loss.name for loss in losses), *compared]
        self.total = torch.zeros(len(self.names), dtype=torch.float64, device=run.device)

    def add(self, batch: Batch) -> None:
        """One batch's sums."""
        model = self.run.language_model
        with self.run.autocast():
            states = model.states(batch)
        other, head = read(self.teacher, batch) if self.teacher else None, model.head()
        for at in torch.split(batch.valid, chunk_size(batch.vocabulary, self.run.device)):
            student = head(states[at])[:, : batch.vocabulary]
            self.total += self._chunk(student, other and other(at), batch.labels[at])

    def _chunk(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        values = [
            torch.ones_like(labels),
            self.bytes[labels],
            F.cross_entropy(student, labels, reduction="none"),
            *(per_token(loss, student, teacher, labels) for loss in self.losses),
        ]
        if teacher is not None:
            values.append(student.argmax(-1) == teacher.argmax(-1))
        return torch.stack([value.double().sum() for value in values])

    def everywhere(self) -> Mapping[str, float]:
        """The sums of all processes."""
        if self.run.processes > 1:
            torch.distributed.all_reduce(self.total)
        return dict(zip(self.names, self.total.tolist(), strict=True))
