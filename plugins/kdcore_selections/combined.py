"""Selections made of others; of weights the least, the greatest, and what is left of 1."""

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
        """Whether a member does."""
        return any(member.needs_teacher() for member in self.members)

    def _kept(self, tokens: Tokens) -> list[Tensor]:
        """Each member's choice; all as weights where one of them weighs."""
        found = [member.keep(tokens) for member in self.members]
        if all(keep.dtype == torch.bool for keep in found):
            return found
        return [keep.float() for keep in found]


@component
class And(_Combined):
    """Tokens that every member keeps; of weights the least."""

    name = "and"
    members: Members

    def keep(self, tokens: Tokens) -> Tensor:
        """The least."""
        return reduce(torch.minimum, self._kept(tokens))


@component
class Or(_Combined):
    """Tokens that any member keeps; of weights the greatest."""

    name = "or"
    members: Members

    def keep(self, tokens: Tokens) -> Tensor:
        """The greatest."""
        return reduce(torch.maximum, self._kept(tokens))


@component
class Not(Selection):
    """Tokens that another selection drops; of weights in [0, 1] what is left of 1."""

    name = "not"
    of: Selection

    def needs_teacher(self) -> bool:
        """Whether the other does."""
        return self.of.needs_teacher()

    def keep(self, tokens: Tokens) -> Tensor:
        """The complement."""
        keep = self.of.keep(tokens)
        if keep.dtype == torch.bool:
            return ~keep
        if (keep > 1).any():
            raise RunError(
                f"selection 'not' of {self.of.name!r}: a weight above 1 has no complement"
            )
        return 1 - keep
