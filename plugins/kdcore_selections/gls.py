"""A threshold over many steps, for steps with few tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from kdcore import Loss, Selection, Tokens, component, value_now
from kdcore_selections.top import Share


@component
class GlobalSelection(Selection):
    """Tokens above the (1 - keep) quantile of the last `memory` scores of previous steps.

    The share kept in a single step varies; over many steps it is `keep`. While the queue holds
    fewer scores than a tenth of `memory`, the step's own highest scores are kept. Known as
    global-level selection.
    """

    name = "gls"
    # `keep` in recipes; an attribute of that name would hide the method.
    share: Share
    score: Loss
    memory: Annotated[int, Field(ge=1)] = 30_000

    def __post_init__(self) -> None:
        self._past = torch.empty(0)
        self._latest = torch.empty(0)  # scores of the step `_step`
        self._step = 0

    def needs_teacher(self) -> bool:
        """Whether the scoring loss needs the run's teacher."""
        return self.score.needs_teacher

    def keep(self, tokens: Tokens) -> Tensor:
        """The tokens at or above the threshold [n]."""
        scores = tokens.score(self.score)
        if tokens.step != self._step:
            past = torch.cat([self._past.to(scores.device), self._latest.to(scores.device)])
            self._past, self._step = past[-self.memory :], tokens.step
        self._latest = tokens.over_step(scores)
        if len(self._past) * 10 < self.memory:
            return tokens.top(scores, self.share)
        kept = max(1, math.ceil(value_now(self.share) * len(self._past)))
        threshold = self._past.nan_to_num(nan=-math.inf).topk(kept).values[-1]
        return scores >= threshold

    def state_dict(self) -> Mapping[str, Tensor | int | float | str | bytes]:
        """The queue of scores."""
        return {"past": self._past, "latest": self._latest, "step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the queue."""
        self._past, self._latest, self._step = state["past"], state["latest"], state["step"]
