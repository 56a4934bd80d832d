"""Selection of tokens by their position in the answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kdcore import Selection, Stage, Tokens, component
from kdcore_more_losses.answers import before


@component
class Position(Selection):
    """Tokens whose relative position in their answer is at least `from` and less than `to`.

    By default the first ones, which matter most in on-policy distillation (Xie et al. 2026,
    arXiv:2606.22600, which trains on the first 30 %). An answer is the trained part of one document
    in one row; its first token has position 0.
    """

    name = "position"
    start: Annotated[float, Field(alias="from", ge=0, lt=1)] = 0.0
    end: Annotated[float, Field(alias="to", gt=0, le=1)] = 0.3

    def faults(self, recipe: Stage) -> Iterable[str]:
        """Reject an empty range."""
        if self.start >= self.end:
            yield f"from = {self.start} is not below to = {self.end}: no token stands between"

    def keep(self, tokens: Tokens) -> Tensor:
        """The tokens within the range."""
        earlier, all_of_it = before(torch.ones_like(tokens.labels), tokens)
        share = earlier / all_of_it
        return (share >= self.start) & (share < self.end)
