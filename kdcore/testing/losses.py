"""Check the contract of losses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kdcore.api.loss import HiddenStatesLoss, Loss
from kdcore.api.tokens import PreparedLoss
from kdcore.errors import PluginError
from kdcore.objective.hidden_states import checked_values
from kdcore.objective.selection import prepared_by
from kdcore.testing.claims import ROUNDING, close, require
from kdcore.testing.fakes import TableTeacher, make_batch, make_tokens

_TOKENS, _VOCABULARY, _WIDTH = 12, 31, 8


def check_loss(
    loss: Loss, *, never_negative: bool = True, zero_at_equality: bool | None = None
) -> None:
    """Assert that a loss is pure and finite, with the right shape and gradient, token by token.

    A loss that needs a teacher must be 0 where the student equals it, unless `zero_at_equality` is
    False. A `temperature` is checked from 0.05 to 10. A `PreparedLoss` is checked with what it
    prepares of a small step, and may be negative. A `HiddenStatesLoss` is checked on random states,
    with and without a projection.
    """
    if isinstance(loss, PreparedLoss):
        check_prepared_loss(loss)
        return
    if isinstance(loss, HiddenStatesLoss):
        check_hidden_states_loss(loss, never_negative, zero_at_equality is not False)
        return
    student, teacher, labels = _logits(3.0, seed=0), _logits(3.0, seed=1), _labels()
    _check_purity(loss, student, teacher, labels)
    _check_gradient(loss, student, teacher, labels)
    _check_each_token_for_itself(loss, student, teacher, labels)
    if zero_at_equality or (zero_at_equality is None and loss.needs_teacher):
        found = _values(loss, student, student.clone(), labels)
        worst = found.abs().max().item()
        require(worst < ROUNDING, loss, f"should be 0 where student equals teacher, is {worst}")
    for each in _at_temperatures(loss):
        for spread in (3.0, 200.0):
            apart = _logits(spread, seed=0), _logits(spread, seed=1)
            same = apart[0], apart[0].clone()
            for one, other in (apart, same):
                _check_numbers(each, one, other, labels, never_negative, f"logits of +-{spread}")


def check_prepared_loss(loss: PreparedLoss) -> None:
    """Assert that `prepare` is deterministic, and that values are finite and independent of other
    tokens. They may be negative.
    """
    batch = make_batch([list(range(n, n + 9)) for n in (1, 20, 40)])
    tokens = make_tokens(batch, TableTeacher() if loss.needs_teacher else None, loss=loss)
    try:
        prepared, again = prepared_by(loss, tokens), prepared_by(loss, tokens)
    except PluginError as error:
        raise AssertionError(str(error)) from error
    fits = prepared.is_floating_point() and bool(prepared.isfinite().all())
    require(fits, loss, f"prepared {prepared.dtype} that is not floats, or is not finite")
    require(prepared.equal(again), loss, "prepares something else the second time")
    made, labels = _WithPrepared(loss, prepared), _labels()
    student, teacher = _logits(3.0, seed=0), _logits(3.0, seed=1)
    _check_purity(made, student, teacher, labels)
    _check_gradient(made, student, teacher, labels)
    _check_each_token_for_itself(made, student, teacher, labels)
    for spread in (3.0, 200.0):
        apart = _logits(spread, seed=0), _logits(spread, seed=1)
        _check_numbers(made, *apart, labels, False, f"logits of +-{spread}")


def check_hidden_states_loss(
    loss: HiddenStatesLoss, never_negative: bool, zero_at_equality: bool
) -> None:
    """Assert the same of a loss on hidden states; gradients reach its learned parameters too."""
    count = len(loss.layers)
    fresh: Any = loss
    for projection, width in (("none", _WIDTH), ("linear", 2 * _WIDTH)):
        made = replace(fresh, projection=projection)
        made.set_sizes([_WIDTH] * count, [width] * count, 0)
        for spread in (3.0, 200.0):
            student = [_states(spread, _WIDTH, n).requires_grad_() for n in range(count)]
            teacher = [_states(spread, width, n + count) for n in range(count)]
            _check_states(made, student, teacher, never_negative)
        if projection == "none" and zero_at_equality:
            worst = checked_values(made, student, [x.detach() for x in student]).abs().max().item()
            require(worst < ROUNDING, loss, f"should be 0 at equality, is {worst}")


def _check_states(
    loss: HiddenStatesLoss, student: list[Tensor], teacher: list[Tensor], never_negative: bool
) -> None:
    try:
        values = checked_values(loss, student, teacher)
    except PluginError as error:
        raise AssertionError(str(error)) from error
    require(values.dtype == torch.float32, loss, f"returned {values.dtype}, not torch.float32")
    require(bool(values.isfinite().all()), loss, "is not finite")
    least = -ROUNDING * max(1.0, values.abs().max().item())
    require(not (never_negative and bool((values < least).any())), loss, "is negative")
    learned = loss.learned()
    leaves = [*student, *(learned.parameters() if learned is not None else ())]
    gradients = torch.autograd.grad(values.sum(), leaves, allow_unused=True)
    reached = all(each is not None and bool(each.isfinite().all()) for each in gradients)
    require(reached, loss, "has no finite gradient in every layer of its pairs, and what it learns")
    parts = [
        checked_values(loss, [x[at] for x in student], [x[at] for x in teacher])
        for at in (slice(0, 5), slice(5, None))
    ]
    require(close(values, torch.cat(parts)), loss, "gives a token other values among fewer")


def _states(spread: float, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * (2 * torch.rand(_TOKENS, width, generator=generator) - 1)


class _WithPrepared(Loss):
    """A prepared loss as a plain one; labels index `prepared`."""

    def __init__(self, loss: PreparedLoss, prepared: Tensor) -> None:
        self._loss, self._prepared = loss, prepared
        # Class variables of `Loss`, set here on the instance.
        self.name, self.needs_teacher = loss.name, loss.needs_teacher  # type: ignore[misc]

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        return self._loss.per_token_prepared(student, teacher, labels, self._prepared[labels])


def _check_purity(loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor) -> None:
    given = student.clone(), teacher.clone(), labels.clone()
    values = _values(loss, student, teacher, labels)
    found = f"{values.dtype} of shape {tuple(values.shape)}"
    fits = values.dtype == torch.float32 and values.shape == labels.shape
    require(fits, loss, f"returned {found}, not torch.float32 of shape ({len(labels)},)")
    for before, after in zip(given, (student, teacher, labels), strict=True):
        require(before.equal(after), loss, "writes into its inputs")


def _check_gradient(loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor) -> None:
    leaf = student.clone().requires_grad_()
    values = _values(loss, leaf, teacher, labels)
    require(values.requires_grad, loss, "has no gradient to the student's logits")
    others = [each for each in _leaves(values) if each is not leaf]
    require(not others, loss, "has a gradient to something else than the student's logits")


def _check_each_token_for_itself(
    loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor
) -> None:
    whole = _values(loss, student, teacher, labels)
    parts = [slice(0, 5), slice(5, None)]
    chunked = torch.cat([_values(loss, student[at], teacher[at], labels[at]) for at in parts])
    require(close(whole, chunked), loss, "gives a token other values when the chunk is smaller")


def _check_numbers(
    loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor, never_negative: bool, case: str
) -> None:
    case += f" at temperature {loss.temperature}" if hasattr(loss, "temperature") else ""
    leaf = student.clone().requires_grad_()
    values = _values(loss, leaf, teacher, labels)
    require(bool(values.isfinite().all()), loss, f"is not finite for {case}")
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    require(bool(gradient.isfinite().all()), loss, f"has a gradient that is not finite for {case}")
    least = -ROUNDING * max(1.0, values.abs().max().item())
    negative = never_negative and bool((values < least).any())
    require(not negative, loss, f"is negative for {case}")


def _values(loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    values: object = loss.per_token(student, teacher if loss.needs_teacher else None, labels)
    assert isinstance(values, Tensor), f"{loss.name}: returned {type(values).__name__}"
    return values


def _at_temperatures(loss: Loss) -> Iterable[Loss]:
    yield loss
    if is_dataclass(loss) and any(field.name == "temperature" for field in fields(loss)):
        made: Any = loss
        yield from (replace(made, temperature=temperature) for temperature in (0.05, 1.0, 10.0))


def _leaves(value: Tensor) -> set[Tensor]:
    """The leaf tensors that a backward pass from `value` would reach."""
    found: set[Tensor] = set()
    open_nodes: list[Any] = [value.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if hasattr(node, "variable"):
            found.add(node.variable)
        open_nodes += [each for each, _ in node.next_functions if each is not None]
    return found


def _logits(spread: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * (2 * torch.rand(_TOKENS, _VOCABULARY, generator=generator) - 1)


def _labels() -> Tensor:
    return torch.arange(_TOKENS) % _VOCABULARY
