"""Losses between the two next-token distributions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdcore import Loss, Scheduled, Stage, component, tensor_now
from kdcore_more_losses.known import OfKnownIds

_EXCLUDED = -1e4  # the log-probability of an id that a model excludes


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-probabilities, clamped so that 0 * inf never occurs for an excluded id."""
    return logits.log_softmax(-1).clamp(min=_EXCLUDED)


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) of log-probabilities [n, V] -> [n]."""
    return (log_a.exp() * (log_a - log_b)).sum(-1)


@component
class Top1CrossEntropy(OfKnownIds):
    """-p log q of the teacher's top id: hard labels, weighted by the teacher's confidence.

    KDFlow's `top1_ce`.
    """

    name = "top1-ce"
    temperature: Annotated[Scheduled, Field(gt=0)] = 1.0

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """The weighted cross-entropy [n]."""
        assert teacher is not None, "the engine hands a teacher to a loss that needs one"
        temperature = tensor_now(self.temperature)
        sure, ids = self.known((teacher / temperature).softmax(-1)).max(-1, keepdim=True)
        log_q = (student / temperature).log_softmax(-1)
        return -(sure * log_q.gather(1, ids))[:, 0]


@component
class BDKD(Loss):
    """KL(p || q) + KL(q || p), one of them weighted by `emphasis`.

    It is the first where the teacher has the higher entropy, and the second where the student has.
    Amara et al. 2022 (BD-KD), arXiv:2212.12965, with the weights of ABKD's code, whose value lacks
    the teacher's entropy in its first part.
    """

    name = "bdkd"
    emphasis: Annotated[float, Field(gt=0)] = 3.0

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Both divergences [n]; no gradient flows through their weights."""
        assert teacher is not None, "the engine hands a teacher to a loss that needs one"
        log_p, log_q = log_probabilities(teacher), log_probabilities(student)
        entropy_p, entropy_q = (-(each.exp() * each).sum(-1).detach() for each in (log_p, log_q))
        more = self.emphasis - 1
        forward = (1 + more * (entropy_p > entropy_q)) * kl(log_p, log_q)
        return forward + (1 + more * (entropy_q > entropy_p)) * kl(log_q, log_p)


@component
class Cosine(Loss):
    """1 - cosine similarity of the logits of student and teacher, from 0 to 2.

    It depends on the additive constant of the logits, which a distribution does not determine.
    Liger's cosine similarity loss, whose `beta` is a weight.
    """

    name = "cosine"

    def faults(self, recipe: Stage) -> Iterable[str]:
        """Reject a teacher of k ids: it has masses, which are not logits."""
        if recipe.teacher is not None and recipe.teacher.ids_known() is not None:
            yield f"the loss 'cosine' needs logits, and {recipe.teacher.name!r} knows some ids only"

    def per_token(self, student: Tensor, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """1 - cos [n]."""
        assert teacher is not None, "the engine hands a teacher to a loss that needs one"
        return 1 - F.cosine_similarity(student, teacher.clamp(min=_EXCLUDED), dim=-1)
