"""The contract of losses, checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kdcore.api.contracts import Loss, PreparedLoss, Term
from kdcore.objective.objective import TokenMask
from kdcore.objective.step_tokens import Chosen, StepTokens
from kdcore.testing.claims import ROUNDING, close, require
from kdcore.testing.fakes import TableTeacher, make_batch, make_tokens

_TOKENS, _VOCABULARY = 12, 31


def check_loss(
    loss: Loss, *, never_negative: bool = True, zero_at_equality: bool | None = None
) -> None:
    """Assert that a loss is pure and finite: right shape, right gradient, each token for itself.

    A loss that needs a teacher is expected to be 0 where the student equals it, unless
    `zero_at_equality` says otherwise. One with a `temperature` is checked from 0.05 to 10.
    """
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
    """Assert that a loss that prepares a step gives finite values and gradients, the same twice."""
    tokens = make_tokens(make_batch([list(range(n, n + 9)) for n in (1, 20, 40)]), TableTeacher())
    assert isinstance(tokens, StepTokens)
    count = torch.tensor(len(tokens.labels))
    term = Term(loss.name, loss.name, loss, 1.0, "kept")
    tokens.chosen = Chosen([term], TokenMask(None, count, count, count))
    with torch.no_grad():
        prepared, again = loss.prepare(tokens), loss.prepare(tokens)
    fits = prepared.is_floating_point() and prepared.ndim in (1, 2) and len(prepared) == int(count)
    require(fits, loss, f"prepared {prepared.dtype} of shape {tuple(prepared.shape)}")
    require(prepared.equal(again), loss, "prepares something else the second time")
    _check_prepared_values(loss, prepared, tokens)


def _check_prepared_values(loss: PreparedLoss, prepared: Tensor, tokens: StepTokens) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, len(prepared), 64, generator=generator)
    leaf = student.requires_grad_()
    given = teacher if loss.needs_teacher else None
    values = loss.per_token_prepared(leaf, given, tokens.labels, prepared)
    right = values.dtype == torch.float32 and values.shape == tokens.labels.shape
    require(right, loss, f"returned {values.dtype} of shape {tuple(values.shape)}")
    require(values.requires_grad, loss, "has no gradient to the student's logits")
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    finite = bool(values.isfinite().all()) and bool(gradient.isfinite().all())
    require(finite, loss, "is not finite, or has a gradient that is not")


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
    """The tensors that a gradient of `value` would be accumulated in."""
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
