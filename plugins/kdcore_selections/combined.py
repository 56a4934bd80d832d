"""Combinations of selections: minimum, maximum and complement."""

from __future__ import annotations

from functools import reduce
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kdcore import RunError, Selection, Tokens, component

Members = Annotated[list[Selection], Field(min_length=1)]


class _Combined(Selection):
    members: Members

    def needs_teacher(self) -> bool:
        """Whether any member does."""
        return any(member.needs_teacher() for member in self.members)

    def _kept(self, tokens: Tokens) -> list[Tensor]:
        """Each member's choice, as weights if any member returns weights."""
        found = [member.keep(tokens) for member in self.members]
        if all(keep.dtype == torch.bool for keep in found):
            return found
        return [keep.float() for keep in found]


@component
class And(_Combined):
    """Tokens that every member keeps; for weights, the minimum."""

    name = "and"
    members: Members

    def keep(self, tokens: Tokens) -> Tensor:
        """The minimum over members [n]."""
        return reduce(torch.minimum, self._kept(tokens))


@component
class Or(_Combined):
    """Tokens that any member keeps; for weights, the maximum."""

    name = "or"
    members: Members

    def keep(self, tokens: Tokens) -> Tensor:
        """The maximum over members [n]."""
        return reduce(torch.maximum, self._kept(tokens))


@component
class Not(Selection):
    """Tokens that another selection drops; for weights in [0, 1], 1 minus the weight."""

    name = "not"
    of: Selection

    def needs_teacher(self) -> bool:
        """Whether the other selection does."""
        return self.of.needs_teacher()

    def keep(self, tokens: Tokens) -> Tensor:
        """The complement [n]. A weight above 1 is an error."""
        keep = self.of.keep(tokens)
        if keep.dtype == torch.bool:
            return ~keep
        if (keep > 1).any():
            raise RunError(
                f"selection 'not' of {self.of.name!r}: a weight above 1 has no complement"
            )
        return 1 - keep
