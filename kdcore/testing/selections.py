"""Check the contract of selections."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcore.api.tokens import Selection, Tokens
from kdcore.testing.claims import require
from kdcore.testing.fakes import TableTeacher, make_batch, make_tokens


def check_selection(selection: Selection, tokens: Tokens | None = None) -> None:
    """Assert that a selection returns a bool or weight per token, deterministically, also for none.

    Nested teachers must be loaded. `tokens` replaces the default ones; see `make_tokens`.
    """
    teacher = TableTeacher() if selection.needs_teacher() else None
    rows = [list(range(n, n + 9)) for n in (1, 20, 40)]
    asked = tokens or make_tokens(make_batch(rows), teacher)
    nothing = make_tokens(make_batch([[5]]), teacher)
    with torch.no_grad():
        for some in (asked, nothing):
            kept = _kept(selection, some)
            again = _kept(selection, some)
            require(kept.equal(again), selection, "keeps other tokens when asked again")


def _kept(selection: Selection, tokens: Tokens) -> Tensor:
    try:
        kept = selection.keep(tokens)
    except AssertionError as error:
        raise AssertionError(f"{selection.name}: {error}; say so in `needs_teacher`") from error
    require(isinstance(kept, Tensor), selection, f"returned {type(kept).__name__}, not a tensor")
    known = kept.dtype == torch.bool or kept.is_floating_point()
    require(known, selection, f"returned {kept.dtype}, neither torch.bool nor floats: weights")
    if kept.is_floating_point():
        good = bool(((kept >= 0) & kept.isfinite()).all())
        require(good, selection, "returned weights that are negative or not finite")
    found, expected = tuple(kept.shape), (len(tokens.labels),)
    require(found == expected, selection, f"returned the shape {found}, not {expected}")
    return kept
