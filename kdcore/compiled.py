"""Loss and gradient of a chunk, compiled once: a plugin's few lines as fast as a kernel.

Every chunk has one shape, as the last one is filled up and the surplus thrown away; weights enter
as tensors. Losses whose options change during a run are not compiled again and again (dynamo would
give up silently after eight variants): from the first change on they run uncompiled, and the log
says so.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore.api import Loss
from kdcore.head import Values
from kdcore.objective import checked_values, values_of

_log = logging.getLogger("kdcore")


def compiled_values_of(losses: Sequence[Loss], chunk: int) -> Values:
    """The same values as `values_of(losses)`, compiled for chunks of exactly `chunk` tokens."""
    plain, fast = values_of(losses), torch.compile(_functional(losses), dynamic=False)
    options = _options(losses)
    changed = False

    def values(
        student: Tensor, teacher: Tensor | None, labels: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        nonlocal changed
        if not changed and _options(losses) != options:
            changed = True
            _log.warning("a loss changes its options during the run, so losses run uncompiled")
        if changed:
            return plain(student, teacher, labels, weights)
        missing = chunk - len(labels)
        sums, gradient = fast(
            F.pad(student, (0, 0, 0, missing)),
            None if teacher is None else F.pad(teacher, (0, 0, 0, missing)),
            F.pad(labels, (0, missing)),
            F.pad(weights, (0, missing)),
        )
        return sums, gradient[: len(labels)]

    return values


def _functional(losses: Sequence[Loss]) -> Values:
    def values(
        student: Tensor, teacher: Tensor | None, labels: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        def total(logits: Tensor) -> tuple[Tensor, Tensor]:
            each = [
                (checked_values(loss, logits, teacher, labels) * weight).sum()
                for loss, weight in zip(losses, weights, strict=True)
            ]
            sums = torch.stack(each)
            return sums.sum(), sums.detach()

        gradient, sums = torch.func.grad(total, has_aux=True)(student)
        return sums, gradient

    return values


def _options(losses: Sequence[Loss]) -> list[dict[str, object]]:
    return [dict(vars(loss)) for loss in losses]
