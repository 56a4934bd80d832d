"""Losses compiled for chunks of one static shape: the last chunk is padded, the surplus discarded.

Weights are tensor inputs. If a loss changes its options during a run, all losses run eagerly from
then on, with a warning: dynamo would recompile on every change and silently give up after eight
variants.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from kdcore.api.loss import Loss
from kdcore.data.batch import Parts, SparseLogits, TwoVocabularies
from kdcore.objective.chunked_loss import Answer, Prepared, Values
from kdcore.objective.losses import checked_values, per_token, temperature_of, values_of

_log = logging.getLogger("kdcore")

PerToken = Callable[[Tensor, Answer, Tensor], Sequence[Tensor]]
"""Student and teacher logits [n, V], labels [n] -> the values of each loss [n]."""

# Up to 2.11, compiled code reads an input that it overwrites too late: the sums of losses that pick
# an id's logit are wrong by some percent.
_OVERWRITES = torch.__version__ >= "2.12"


def compiled_values_of(losses: Sequence[Loss], chunk: int) -> Values:
    """The same values as `values_of(losses)`, compiled for chunks of exactly `chunk` tokens."""
    plain, fast = values_of(losses), _Compiled(losses, _functional(losses))

    def values(
        student: Tensor,
        teacher: Answer,
        labels: Tensor,
        weights: Tensor,
        prepared: Prepared = (),
    ) -> tuple[Tensor, Tensor]:
        if fast.holds():
            missing = chunk - len(labels)
            whole = _filled(student, missing)
            ready = [None if each is None else _filled(each, missing) for each in prepared]
            some = _of_own_strides(weights, chunk)
            found = fast(
                whole, _filled_answer(teacher, missing), _filled(labels, missing), some, ready
            )
            if found is not None:
                sums, gradient = found
                return sums, (whole if gradient is None else gradient)[: len(labels)]
        return plain(student, teacher, labels, weights, prepared)

    return values


def compiled_per_token_of(losses: Sequence[Loss], chunk: int) -> PerToken:
    """Each loss's `per_token`, all compiled together for chunks of exactly `chunk` tokens."""
    temperatures = [temperature_of(loss) for loss in losses]

    def each_of(student: Tensor, teacher: Answer, labels: Tensor) -> list[Tensor]:
        return [
            checked_values(loss, student, teacher, labels, at)
            for loss, at in zip(losses, temperatures, strict=True)
        ]

    fast = _Compiled(losses, _of_own_code(each_of))

    def values(student: Tensor, teacher: Answer, labels: Tensor) -> Sequence[Tensor]:
        if len(labels) and fast.holds():
            missing = chunk - len(labels)
            other = _filled_answer(teacher, missing)
            found = fast(_filled(student, missing), other, _filled(labels, missing))
            if found is not None:
                return [each[: len(labels)] for each in found]
        return [per_token(loss, student, teacher, labels) for loss in losses]

    return values


class _Compiled:
    """A compiled function of losses, until compiling fails or a loss changes its options."""

    def __init__(self, losses: Sequence[Loss], function: Callable[..., Any]) -> None:
        self._losses, self._options = losses, _options(losses)
        # One graph or an error: dynamo's graph breaks and fallbacks are silent.
        self._fast = torch.compile(function, dynamic=False, fullgraph=True)
        self._works = True

    def holds(self) -> bool:
        """Whether it may be called."""
        if self._works and not _same(_options(self._losses), self._options):
            self._works = False
            _log.warning("a loss changes its options during the run, so losses run uncompiled")
        return self._works

    def __call__(self, *arguments: object) -> Any:
        """The result; None where it does not compile."""
        # Imported here: it takes a second, and few runs compile.
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        try:
            return self._fast(*arguments)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            self._works = False
            first = str(error).strip().split("\n")[0]
            _log.warning("losses run uncompiled, as compiling them failed: %s", first)
            return None


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


def _functional(losses: Sequence[Loss]) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The sums and the gradient; None where the gradient overwrites the student's logits."""
    temperatures = [temperature_of(loss) for loss in losses]

    def values(
        student: Tensor,
        teacher: Answer,
        labels: Tensor,
        weights: Tensor,
        prepared: Prepared = (),
    ) -> tuple[Tensor, Tensor | None]:
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
        if not _OVERWRITES:
            return sums, gradient
        student.copy_(gradient)
        return sums, None

    return _of_own_code(values)


def _of_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """Dynamo counts variants per code object, over all runs of a process: each set of losses gets
    its own. From torch 2.13 on, `torch.compile(isolate_recompiles=True)` can replace this.
    """
    assert isinstance(function, FunctionType)
    function.__code__ = function.__code__.replace()
    return function


def _options(losses: Sequence[Loss]) -> list[tuple[str, object]]:
    return [item for loss in losses for item in vars(loss).items()]


def _same(some: list[tuple[str, object]], others: list[tuple[str, object]]) -> bool:
    return len(some) == len(others) and all(
        name == other_name and (value is other or _equal(value, other))
        for (name, value), (other_name, other) in zip(some, others, strict=True)
    )


def _equal(value: object, other: object) -> bool:
    return not isinstance(value, Tensor) and bool(value == other)
