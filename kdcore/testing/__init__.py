"""For the tests of plugins: small stand-ins, and checks that a component keeps its contract.

Each check raises AssertionError with a sentence that says what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kdcore.api.contracts import Loss, Selection, Teacher, Tokens
from kdcore.data.batch import Batch, GappedLogits, SparseLogits
from kdcore.models.head import nll_from_logits
from kdcore.objective.teachers import read, read_nll, read_outputs
from kdcore.testing.fakes import TableTeacher, make_batch, make_tokens

__all__ = [
    "TableTeacher",
    "check_loss",
    "check_selection",
    "check_teacher",
    "make_batch",
    "make_tokens",
    "tiny_llama",
    "tiny_tokenizer",
]

_TOKENS, _VOCABULARY = 12, 31
_ROUNDING = 1e-4  # what float32 may be wrong by, of values around 1


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
        _require(worst < _ROUNDING, loss, f"should be 0 where student equals teacher, is {worst}")
    for each in _at_temperatures(loss):
        for spread in (3.0, 200.0):
            apart = _logits(spread, seed=0), _logits(spread, seed=1)
            same = apart[0], apart[0].clone()
            for one, other in (apart, same):
                _check_numbers(each, one, other, labels, never_negative, f"logits of +-{spread}")


def check_teacher(teacher: Teacher, batch: Batch) -> None:
    """Assert that a loaded teacher reads a batch alike each time, for whatever positions, finitely.

    Its likelihoods must be those of its logits, where it gives any.
    """
    positions, labels = batch.valid, batch.labels[batch.valid]
    if teacher.gives_losses():
        nll = read_nll(teacher, batch)(positions, labels)
        _require(bool(nll.isfinite().all()), teacher, "gives likelihoods that are not finite")
        _require(bool((nll > -_ROUNDING).all()), teacher, "gives likelihoods above 1")
    if teacher.ids_known() is not None:
        _check_coarse(teacher, batch, positions)
    elif teacher.gives_logits():
        _check_logits(teacher, batch, positions)
        same = _close(nll, nll_from_logits(read(teacher, batch), batch)(positions, labels))
        _require(same, teacher, "gives other likelihoods by `nll` than by its logits")


def check_selection(selection: Selection, tokens: Tokens | None = None) -> None:
    """Assert that a selection gives a bool for each token, the same each time, also for none.

    Nested teachers must be loaded. `make_tokens` makes other tokens than those of the check.
    """
    teacher = TableTeacher() if selection.needs_teacher() else None
    rows = [list(range(n, n + 9)) for n in (1, 20, 40)]
    asked = tokens or make_tokens(make_batch(rows), teacher)
    nothing = make_tokens(make_batch([[5]]), teacher)
    with torch.no_grad():
        for some in (asked, nothing):
            kept = _kept(selection, some)
            again = _kept(selection, some)
            _require(kept.equal(again), selection, "keeps other tokens when asked again")


def _kept(selection: Selection, tokens: Tokens) -> Tensor:
    try:
        kept = selection.keep(tokens)
    except AssertionError as error:
        raise AssertionError(f"{selection.name}: {error}; say so in `needs_teacher`") from error
    _require(isinstance(kept, Tensor), selection, f"returned {type(kept).__name__}, not a tensor")
    known = kept.dtype == torch.bool or kept.is_floating_point()
    _require(known, selection, f"returned {kept.dtype}, neither torch.bool nor floats: weights")
    if kept.is_floating_point():
        good = bool(((kept >= 0) & kept.isfinite()).all())
        _require(good, selection, "returned weights that are negative or not finite")
    found, expected = tuple(kept.shape), (len(tokens.labels),)
    _require(found == expected, selection, f"returned the shape {found}, not {expected}")
    return kept


def _check_logits(teacher: Teacher, batch: Batch, positions: Tensor) -> None:
    at = read(teacher, batch)
    logits = at(positions)
    finite = not logits.isnan().any() and not (logits == torch.inf).any()
    _require(finite, teacher, "gives logits that are NaN or infinite")
    _require(len(at(positions[:0])) == 0, teacher, "gives logits where no position is asked for")
    again = _close(logits, read(teacher, batch)(positions))
    _require(again, teacher, "reads a batch otherwise the second time: is dropout on?")
    turned = at(positions.flip(0)).flip(0)
    _require(_close(logits, turned), teacher, "mixes up positions that are asked for in reverse")


def _check_coarse(teacher: Teacher, batch: Batch, positions: Tensor) -> None:
    at = read_outputs(teacher, batch)
    found, again = at(positions), read_outputs(teacher, batch)(positions.flip(0))
    assert isinstance(found, SparseLogits) and isinstance(again, SparseLogits)
    none = (
        (found.ids == -1)
        if isinstance(found, GappedLogits)
        else torch.zeros_like(found.ids, dtype=torch.bool)
    )
    fits = bool((none | (found.ids >= 0) & (found.ids < batch.vocabulary)).all())
    _require(fits, teacher, f"knows ids outside 0 to {batch.vocabulary - 1}")
    ordered = found.ids.sort(-1).values
    apart = bool(((ordered.diff(dim=-1) > 0) | (ordered[:, 1:] < 0)).all())
    _require(apart, teacher, "knows an id twice at a position")
    whole = found.log_probabilities.exp().sum(-1)
    _require(bool(((whole - 1).abs() < 0.01).all()), teacher, "gives masses that do not sum to 1")
    same = found.ids.equal(again.ids.flip(0)) and found.log_probabilities.equal(
        again.log_probabilities.flip(0)
    )
    _require(same, teacher, "tells another thing of a position when asked again, or in reverse")


def _check_purity(loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor) -> None:
    given = student.clone(), teacher.clone(), labels.clone()
    values = _values(loss, student, teacher, labels)
    found = f"{values.dtype} of shape {tuple(values.shape)}"
    fits = values.dtype == torch.float32 and values.shape == labels.shape
    _require(fits, loss, f"returned {found}, not torch.float32 of shape ({len(labels)},)")
    for before, after in zip(given, (student, teacher, labels), strict=True):
        _require(before.equal(after), loss, "writes into its inputs")


def _check_gradient(loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor) -> None:
    leaf = student.clone().requires_grad_()
    values = _values(loss, leaf, teacher, labels)
    _require(values.requires_grad, loss, "has no gradient to the student's logits")
    others = [each for each in _leaves(values) if each is not leaf]
    _require(not others, loss, "has a gradient to something else than the student's logits")


def _check_each_token_for_itself(
    loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor
) -> None:
    whole = _values(loss, student, teacher, labels)
    parts = [slice(0, 5), slice(5, None)]
    chunked = torch.cat([_values(loss, student[at], teacher[at], labels[at]) for at in parts])
    _require(_close(whole, chunked), loss, "gives a token other values when the chunk is smaller")


def _check_numbers(
    loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor, never_negative: bool, case: str
) -> None:
    case += f" at temperature {loss.temperature}" if hasattr(loss, "temperature") else ""
    leaf = student.clone().requires_grad_()
    values = _values(loss, leaf, teacher, labels)
    _require(bool(values.isfinite().all()), loss, f"is not finite for {case}")
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    _require(bool(gradient.isfinite().all()), loss, f"has a gradient that is not finite for {case}")
    least = -_ROUNDING * max(1.0, values.abs().max().item())
    negative = never_negative and bool((values < least).any())
    _require(not negative, loss, f"is negative for {case}")


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


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=_ROUNDING, atol=_ROUNDING)


def _require(holds: bool, checked: Any, otherwise: str) -> None:
    assert holds, f"{checked.name}: {otherwise}"
