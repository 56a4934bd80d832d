"""A soft selection: a token's weight grows with its distance from the threshold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kdcore import Selection, Stage, Tokens, component
from kdcore_selections.top import Top


@component
class Soft(Selection):
    """Weights sigmoid(sharpness * (score - threshold) / spread) instead of a hard top share.

    Score and threshold are those of `of`, a selection that keeps the highest scores; spread is the
    standard deviation of the step's scores. As `sharpness` grows, it approaches `of`.
    """

    name = "soft"
    of: Selection
    sharpness: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 4.0

    def faults(self, recipe: Stage) -> Iterable[str]:
        """Reject selections that do not rank tokens by a score."""
        if not isinstance(self.of, Top):
            yield f"{self.of.name!r} does not keep a share by score, so there is nothing to soften"

    def needs_teacher(self) -> bool:
        """Whether the other selection does."""
        return self.of.needs_teacher()

    def keep(self, tokens: Tokens) -> Tensor:
        """The weights in [0, 1] [n]."""
        assert isinstance(self.of, Top)
        scores = self.of.scores(tokens)
        everyone = tokens.over_step(scores)
        kept = tokens.over_step(tokens.top(scores, self.of.share))
        # The lowest score that `of` would keep, over all micro-batches of the step.
        known = everyone[~everyone.isnan()]
        threshold = torch.where(kept, everyone, torch.inf).amin() if len(everyone) else 0.0
        spread = known.std(correction=0).clamp(min=1e-12) if len(known) else 1.0
        weights = torch.sigmoid(self.sharpness * (scores - threshold) / spread)
        return weights.nan_to_num(nan=0.0)
