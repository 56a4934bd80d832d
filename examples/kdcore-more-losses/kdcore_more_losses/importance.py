"""On-policy distillation with less weight on the teacher after the student has diverged."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kdcore import PreparedLoss, Tokens, component
from kdcore_more_losses.answers import before


@component
class ImportanceWeightedOPD(PreparedLoss):
    """`opd` with weights that fall along an answer as student and teacher diverge.

    A = log p(y) - log q_old(y) is a token's advantage, and its weight is 1 + gamma (1 - a / b),
    where a is the sum of |A| over the tokens before it in its answer and b the sum over the whole
    answer. q_old is the student that sampled the token, possibly some steps ago; if that was not
    recorded, the student before the step. With gamma 0 and fresh answers it equals `opd`. Xie et
    al. 2026, arXiv:2606.22600; TRL's IWOPDTrainer.
    """

    name = "iw-opd"
    needs_samples = True
    gamma: Annotated[float, Field(ge=0)] = 0.5

    def prepare(self, tokens: Tokens) -> Tensor:
        """log q_old of each label, and its weighted advantage [n, 2]."""
        now, recorded = -tokens.student_nll(), tokens.old_log_probs()
        old = torch.where(recorded.isnan(), now, recorded.to(now.dtype))
        advantage = torch.where(tokens.seen(self), -tokens.nll() - old, 0)
        gone, whole = before(advantage.abs(), tokens)
        weight = 1 + self.gamma * (1 - gone / whole.clamp(min=1e-8))
        return torch.stack([old, (weight * advantage).to(old.dtype)], 1)

    def per_token_prepared(
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, prepared: Tensor
    ) -> Tensor:
        """The ratio q / q_old times the weighted advantage, negated because it is maximised [n]."""
        old, advantage = prepared.unbind(1)
        log_q = student.log_softmax(-1).gather(1, labels[:, None])[:, 0]
        return -(log_q - old).exp() * advantage
