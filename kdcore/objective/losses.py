"""Per-token losses on a chunk of logits, eager or compiled.

Compiled losses see one static shape: the last chunk is padded, and the surplus discarded. Weights
are tensor inputs. If a loss changes its options during a run, all losses run eagerly from then on,
with a warning: dynamo would recompile on every change and silently give up after eight variants.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from types import FunctionType

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


def tell_untempered(teacher: Teacher | None, losses: Iterable[Loss]) -> None:
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


def compiled_values_of(losses: Sequence[Loss], chunk: int) -> Values:
    """The same values as `values_of(losses)`, compiled for chunks of exactly `chunk` tokens."""
    # Imported here: it takes a second, and few runs compile.
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    plain = values_of(losses)
    # One graph or an error: dynamo's graph breaks and fallbacks are silent.
    fast = torch.compile(_functional(losses), dynamic=False, fullgraph=True)
    options = _options(losses)
    compiled = True

    def values(
        student: Tensor,
        teacher: Answer,
        labels: Tensor,
        weights: Tensor,
        prepared: Prepared = (),
    ) -> tuple[Tensor, Tensor]:
        nonlocal compiled
        if compiled and not _same(_options(losses), options):
            compiled = False
            _log.warning("a loss changes its options during the run, so losses run uncompiled")
        if compiled:
            missing = chunk - len(labels)
            other = _filled_answer(teacher, missing)
            some = _of_own_strides(weights, chunk)
            whole = _filled(student, missing)
            try:
                ready = [None if each is None else _filled(each, missing) for each in prepared]
                sums = fast(whole, other, _filled(labels, missing), some, ready)
                return sums, whole[: len(labels)]
            except (TorchDynamoException, FailOnRecompileLimitHit) as error:
                compiled = False
                first = str(error).strip().split("\n")[0]
                _log.warning("losses run uncompiled, as compiling them failed: %s", first)
        return plain(student, teacher, labels, weights, prepared)

    return values


def _of_own_strides(weights: Tensor, chunk: int) -> Tensor:
    """Padded with zeros, contiguous: as a slice, its strides would trigger recompilation."""
    some = weights.new_zeros(len(weights), chunk)
    some[:, : weights.shape[1]] = weights
    return some


def _filled(tensor: Tensor, missing: int) -> Tensor:
    """Padded by repeating the last row. Rows of zeros could make a loss divide by zero."""
    if not missing:
        return tensor
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])])


def _filled_answer(teacher: Answer, missing: int) -> Answer:
    if isinstance(teacher, TwoVocabularies):
        shared = _filled_answer(teacher.shared, missing)
        assert not isinstance(shared, TwoVocabularies)
        return TwoVocabularies(shared, _filled(teacher.own, missing))
    if isinstance(teacher, Parts):
        return Parts(teacher.weights, tuple(_filled_one(one, missing) for one in teacher.each))
    return None if teacher is None else _filled_one(teacher, missing)


def _filled_one(teacher: Tensor | SparseLogits, missing: int) -> Tensor | SparseLogits:
    if isinstance(teacher, SparseLogits):
        ids, logs, tempered = teacher
        more = tempered and {at: _filled(some, missing) for at, some in tempered.items()}
        return type(teacher)(_filled(ids, missing), _filled(logs, missing), more)
    return _filled(teacher, missing)


def _functional(losses: Sequence[Loss]) -> Callable[..., Tensor]:
    """The sums; the gradient overwrites the student's logits."""
    temperatures = [temperature_of(loss) for loss in losses]

    def values(
        student: Tensor,
        teacher: Answer,
        labels: Tensor,
        weights: Tensor,
        prepared: Prepared = (),
    ) -> Tensor:
        def total(logits: Tensor) -> tuple[Tensor, Tensor]:
            each = [
                (checked_values(loss, logits, teacher, labels, at, ready) * weight).sum()
                for loss, weight, at, ready in zip(
                    losses, weights, temperatures, prepared or [None] * len(losses), strict=True
                )
            ]
            sums = torch.stack(each)
            return sums.sum(), sums.detach()

        # The same gradient as in `values_of`, in a form that traces into one graph with the losses.
        # Padded tokens have weight 0, so they add nothing to the sums.
        sums: Tensor
        gradient, sums = torch.func.grad(total, has_aux=True)(student)
        student.copy_(gradient)
        return sums

    # Dynamo counts variants per code object, over all runs of a process, so each set of losses gets
    # its own. From torch 2.13 on, `torch.compile(isolate_recompiles=True)` can replace this.
    assert isinstance(values, FunctionType)
    values.__code__ = values.__code__.replace()
    return values


def _options(losses: Sequence[Loss]) -> list[tuple[str, object]]:
    return [item for loss in losses for item in vars(loss).items()]


def _same(some: list[tuple[str, object]], others: list[tuple[str, object]]) -> bool:
    return len(some) == len(others) and all(
        name == other_name and (value is other or _equal(value, other))
        for (name, value), (other_name, other) in zip(some, others, strict=True)
    )


def _equal(value: object, other: object) -> bool:
    return not isinstance(value, Tensor) and bool(value == other)
