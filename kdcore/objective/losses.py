"""Per-token losses on a chunk of logits: checked, weighted, with their gradient."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from kdcore.api.loss import Loss
from kdcore.api.teacher import Teacher
from kdcore.api.tokens import PreparedLoss
from kdcore.data.batch import Parts, SparseLogits, TwoVocabularies
from kdcore.errors import PluginError
from kdcore.guard import call_checked, describe_component, inputs_unchanged, plugin_errors
from kdcore.objective.chunked_loss import Answer, Prepared, Values
from kdcore.objective.sparse import to_sparse

_log = logging.getLogger("kdcore")


def values_of(losses: Sequence[Loss]) -> Values:
    """The terms' weighted sums, and the gradient of their total in the student's logits."""
    for loss in losses:
        _refuse_learnable(loss)

    def values(
        student: Tensor,
        teacher: Answer,
        labels: Tensor,
        weights: Tensor,
        prepared: Prepared = (),
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            # `leaf` is cut off from trunk and head: the graph holds the losses of one chunk only.
            leaf = student.detach().requires_grad_()
            each = [
                (per_token(loss, leaf, teacher, labels, ready) * weight).sum()
                for loss, weight, ready in zip(
                    losses, weights, prepared or [None] * len(losses), strict=True
                )
            ]
            # The nested autograd call. For a list of scalars it gives the gradient of their sum,
            # d(sum of weighted terms)/dlogits [n, V], from which ChunkedLoss derives the rest.
            (gradient,) = torch.autograd.grad(each, leaf)
        return torch.stack(each).detach(), gradient

    return values


def _refuse_learnable(loss: Loss) -> None:
    for name, held in vars(loss).items():
        parameters = held.parameters() if isinstance(held, nn.Module) else [held]
        if any(isinstance(p, Tensor) and p.requires_grad for p in parameters):
            raise PluginError(
                f"loss {loss.name!r} has trainable parameters in {name!r}, but only the student "
                "is trained; freeze them with requires_grad_(False)"
            )


def per_token(
    loss: Loss,
    student: Tensor,
    teacher: Answer,
    labels: Tensor,
    prepared: Tensor | None = None,
) -> Tensor:
    """A loss's values [n], checked. Exceptions become errors that name the loss."""
    teacher = _side_of(loss, teacher)
    inputs = (student, teacher, labels, prepared)
    method = "per_token" if prepared is None else "per_token_prepared"
    each = teacher.each if isinstance(teacher, Parts) else (teacher,)
    is_sparse = any(isinstance(one, SparseLogits) for one in each)
    temperature = temperature_of(loss) if is_sparse else 1.0
    with plugin_errors(loss, method), inputs_unchanged(loss, method, *inputs):
        return checked_values(loss, student, teacher, labels, temperature, prepared)


def asks_teacher(loss: Loss) -> bool:
    """Whether a loss takes the teacher's outputs."""
    return loss.needs_teacher and not (isinstance(loss, PreparedLoss) and loss.only_prepared)


def _side_of(loss: Loss, teacher: Answer) -> Tensor | SparseLogits | Parts | None:
    """The teacher's outputs over the ids that a loss compares; None for a loss without teacher."""
    if not asks_teacher(loss):
        return None
    if isinstance(teacher, TwoVocabularies):
        return teacher.own if loss.own_vocabulary else teacher.shared
    return teacher


def temperature_of(loss: Loss) -> float | None:
    """The loss's temperature; None where it has several, or a varying one."""
    found = call_checked(loss, "temperatures", of=Sequence)
    return float(found[0]) if len(found) == 1 else None


def checked_values(
    loss: Loss,
    student: Tensor,
    teacher: Answer,
    labels: Tensor,
    temperature: float | None = 1.0,
    prepared: Tensor | None = None,
) -> Tensor:
    """`per_token` in traceable form. Losses without a teacher see the whole vocabulary."""
    teacher = _side_of(loss, teacher)
    if isinstance(teacher, Parts):
        return _over_parts(loss, student, teacher, labels, temperature, prepared)
    elif isinstance(teacher, SparseLogits):
        student, teacher, labels = to_sparse(student, teacher, labels, temperature)
    if isinstance(loss, PreparedLoss) and prepared is not None:
        values = loss.per_token_prepared(student, teacher, labels, prepared)
    else:
        values = loss.per_token(student, teacher, labels)
    if not isinstance(values, Tensor) or values.shape != labels.shape:
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise PluginError(
            f"{describe_component(loss)} returned {found} from per_token, expected one value for "
            f"each of {len(labels)} tokens: a tensor of shape ({len(labels)},)"
        )
    if student.requires_grad and not values.requires_grad:
        raise PluginError(f"{describe_component(loss)} returned values without a gradient")
    return values


def _over_parts(
    loss: Loss,
    student: Tensor,
    parts: Parts,
    labels: Tensor,
    temperature: float | None,
    prepared: Tensor | None,
) -> Tensor:
    """The weighted sum of a loss's values against each teacher.

    For KL(p || q) its gradient is that of the KL to the mixture of teachers: sum_i w_i KL(p_i || q)
    = KL(sum_i w_i p_i || q) + a constant (their Jensen-Shannon divergence). Other losses differ.
    """
    values = [
        weight * checked_values(loss, student, one, labels, temperature, prepared)
        for weight, one in zip(*parts, strict=True)
    ]
    return torch.stack(values).sum(0)


def warn_untempered(teacher: Teacher | None, losses: Iterable[Loss]) -> None:
    """Warn of losses at temperatures where a top-k teacher gives no mass of other ids."""
    if teacher is None or call_checked(teacher, "ids_known", of=(int, type(None))) is None:
        return
    for loss in losses:
        for at in call_checked(loss, "temperatures", of=Sequence) if loss.needs_teacher else ():
            if call_checked(teacher, "knows_others_at", at, of=(bool, type(None))) is None:
                _log.warning(
                    "the teacher %r does not give the mass of its unknown ids at temperature %g: "
                    "the loss %r tempers the masses of temperature 1, which is another objective; "
                    "`knows_others_at` and `SparseLogits.tempered` would provide it",
                    *(teacher.name, at, loss.name),
                )
