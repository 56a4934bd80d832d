"""Check the contract of teachers."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcore.api.teacher import Teacher
from kdcore.data.batch import Batch, GappedLogits, SparseLogits
from kdcore.models.head import nll_from_logits
from kdcore.objective.teachers import read, read_nll, read_outputs
from kdcore.testing.claims import ROUNDING, close, require


def check_teacher(teacher: Teacher, batch: Batch) -> None:
    """Assert that a loaded teacher is deterministic and finite, for positions in any order.

    Where it has both logits and likelihoods, they must agree.
    """
    positions, labels = batch.valid, batch.labels[batch.valid]
    if teacher.gives_losses():
        nll = read_nll(teacher, batch)(positions, labels)
        require(bool(nll.isfinite().all()), teacher, "gives likelihoods that are not finite")
        require(bool((nll > -ROUNDING).all()), teacher, "gives likelihoods above 1")
    if teacher.ids_known() is not None:
        _check_coarse(teacher, batch, positions)
    elif teacher.gives_logits():
        _check_logits(teacher, batch, positions)
        same = close(nll, nll_from_logits(read(teacher, batch), batch)(positions, labels))
        require(same, teacher, "gives other likelihoods by `nll` than by its logits")


def _check_logits(teacher: Teacher, batch: Batch, positions: Tensor) -> None:
    at = read(teacher, batch)
    logits = at(positions)
    finite = not logits.isnan().any() and not (logits == torch.inf).any()
    require(finite, teacher, "gives logits that are NaN or infinite")
    require(len(at(positions[:0])) == 0, teacher, "gives logits for no positions")
    again = close(logits, read(teacher, batch)(positions))
    require(again, teacher, "reads a batch otherwise the second time: is dropout on?")
    turned = at(positions.flip(0)).flip(0)
    require(close(logits, turned), teacher, "mixes up positions given in reverse")


def _check_coarse(teacher: Teacher, batch: Batch, positions: Tensor) -> None:
    at = read_outputs(teacher, batch)
    found, again = at(positions), read_outputs(teacher, batch)(positions.flip(0))
    assert isinstance(found, SparseLogits) and isinstance(again, SparseLogits)
    lowest = -1 if isinstance(found, GappedLogits) else 0
    fits = bool(((found.ids >= lowest) & (found.ids < batch.vocabulary)).all())
    require(fits, teacher, f"knows ids outside 0 to {batch.vocabulary - 1}")
    ordered = found.ids.sort(-1).values
    apart = bool(((ordered.diff(dim=-1) > 0) | (ordered[:, 1:] < 0)).all())
    require(apart, teacher, "knows an id twice at a position")
    whole = found.log_probabilities.exp().sum(-1)
    require(bool(((whole - 1).abs() < 0.01).all()), teacher, "gives masses that do not sum to 1")
    same = found.ids.equal(again.ids.flip(0)) and found.log_probabilities.equal(
        again.log_probabilities.flip(0)
    )
    require(same, teacher, "gives other logits for a position the second time, or in reverse")
