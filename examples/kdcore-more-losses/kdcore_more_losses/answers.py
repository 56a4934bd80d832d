"""Answers: the consecutive tokens of one document in one row."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcore import Tokens


def answer_of(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """The number of each token's answer, from 0, and whether the token is its first [n]."""
    place = torch.stack([tokens.row, tokens.document], 1)
    starts = torch.ones(len(place), dtype=torch.bool, device=place.device)
    starts[1:] = (place[1:] != place[:-1]).any(1)
    return starts.cumsum(0) - 1, starts


def before(values: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """For each token the sums over what precedes it in its answer, and over the answer [n]."""
    answer, starts = answer_of(tokens)
    values = values.double()
    upto = values.cumsum(0) - values
    total = torch.zeros_like(values).index_add_(0, answer, values)[answer]
    return upto - upto[starts][answer], total
