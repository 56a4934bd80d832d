"""Ranking losses: the student learns the teacher's order of ids."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdcore import component
from kdcore_more_losses.known import OfKnownIds

_SUPPORTED = 1e-8  # ids with less teacher probability are in no pair
Ids = Annotated[int, Field(ge=2, description="the teacher's likeliest ids that are compared")]


@component
class Pairs(OfKnownIds):
    """The mean of a penalty over pairs of the teacher's likeliest ids."""

    k: Ids = 8

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """The mean over pairs whose first id is likelier to the teacher than the second [n]."""
        assert teacher is not None, "the engine hands a teacher to a loss that needs one"
        every = self.known(teacher.softmax(-1))
        p, ids = every.topk(min(self.k, every.shape[1]))
        ranked = (p[:, :, None] > p[:, None, :] + _SUPPORTED) & (p[:, None, :] > _SUPPORTED)
        penalties = self.penalties(p, student, ids) * ranked
        return penalties.sum((1, 2)) / ranked.sum((1, 2)).clamp(min=1)

    def penalties(self, p: Tensor, student: Tensor, ids: Tensor) -> Tensor:
        """Teacher probabilities [n, k] and student logits -> the penalty of each pair [n, k, k].

        Entry [i, j] is for a pair whose id i should rank before id j.
        """
        raise NotImplementedError


@component
class Hinge(Pairs):
    """Hinge loss on the student's probabilities of pairs of ids.

    The mean of max(0, margin - (q_i - q_j)) over the pairs of the teacher's `k` likeliest ids with
    p_i > p_j; without `margin` it is p_i - p_j. DistillKit's `hinge`, which averages over the pairs
    of a batch instead of those of each token.
    """

    name = "hinge"
    margin: Annotated[float, Field(ge=0)] | None = None

    def penalties(self, p: Tensor, student: Tensor, ids: Tensor) -> Tensor:
        """How far each pair is below the margin."""
        q = student.softmax(-1).gather(1, ids)
        wanted = p[:, :, None] - p[:, None, :] if self.margin is None else self.margin
        return torch.relu(wanted - (q[:, :, None] - q[:, None, :]))


@component
class Logistic(Pairs):
    """Logistic loss on the student's ranking of pairs of ids.

    The mean of log(1 + exp(s_j - s_i)) over the same pairs as `hinge`, with the student's logits s.
    DistillKit's `logistic_ranking`, with the same difference.
    """

    name = "logistic"

    def penalties(self, p: Tensor, student: Tensor, ids: Tensor) -> Tensor:
        """The softplus of the second logit minus the first."""
        s = student.gather(1, ids)
        return F.softplus(s[:, None, :] - s[:, :, None])


@component
class HierarchicalRanking(OfKnownIds):
    """Hierarchical ranking: the teacher's top id first, then its top `k`, then the student's own.

    With the teacher's likeliest ids t_1 ... t_k and the student's s_1 ... s_k: the sum of max(0,
    q(t_i) - q(t_1)), and of max(0, q(s_j) - q(t_i)) where q(s_i) > p(s_j). KDFlow's `hrl`, after
    Zhang et al. 2023, arXiv:2305.08096.
    """

    name = "hrl"
    k: Ids = 5

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Both sums [n]."""
        assert teacher is not None, "the engine hands a teacher to a loss that needs one"
        q, p = self.known(student.softmax(-1)), self.known(teacher.softmax(-1))
        k = min(self.k, q.shape[1])
        of_student, students = q.topk(k)
        of_teacher = q.gather(1, p.topk(k).indices)
        first = torch.relu(of_teacher - of_teacher[:, :1]).sum(-1)
        wrong = torch.relu(of_student[:, None, :] - of_teacher[:, :, None])
        counts = of_student[:, :, None] > p.gather(1, students)[:, None, :]
        return first + (wrong * counts).sum((1, 2))
