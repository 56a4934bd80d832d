"""Policy gradients on answers that the student wrote."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcore import PreparedLoss, Tokens, component


@component
class OnPolicyDistillation(PreparedLoss):
    """Reverse KL estimated on sampled tokens: a policy gradient with a reward at each token.

    The advantage of a token is log p(y) - log q_old(y). The value is the Monte Carlo estimate of
    the reverse KL; the gradient is -advantage times that of the ratio q(y) / q_old(y). Source: Lu
    et al., "On-Policy Distillation", Thinking Machines, 2025.
    """

    name = "opd"
    needs_samples = True

    def prepare(self, tokens: Tokens) -> Tensor:
        """log q_old and log p of each label [n, 2]."""
        return -torch.stack([tokens.student_nll(), tokens.nll()], 1)

    def per_token_prepared(
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, prepared: Tensor
    ) -> Tensor:
        """The ratio times (log q_old - log p) [n]."""
        old, reference = prepared.unbind(1)
        # 1 until the weights change; its gradient at 1 is that of log q(y), the policy gradient.
        ratio = (_log_likelihood(student, labels) - old).exp()
        return ratio * (old - reference)

    def formula(self) -> str:
        """The formula as `kdcore plan` prints it."""
        return "PG(p(1), q(1), y)"


@component
class MiniLLM(PreparedLoss):
    """MiniLLM's reverse KL of whole answers: the current token exact, later tokens as a return.

    The return R_t is the sum of log p - log q_old over the tokens from t + 1 on, divided by their
    number if `length_normalised`. Source: Gu et al., "MiniLLM", ICLR 2024 (single-step
    decomposition and length normalisation). Their teacher-mixed sampling is a matter of the
    rollout's writer.
    """

    name = "minillm"
    needs_samples = True
    length_normalised: bool = True

    def prepare(self, tokens: Tokens) -> Tensor:
        """log q_old of each label, and the return from the next token on [n, 2]."""
        old = -tokens.student_nll()
        reward = -tokens.nll() - old
        return torch.stack([old, self._returns(tokens, reward)], 1)

    def per_token_prepared(
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, prepared: Tensor
    ) -> Tensor:
        """KL(q || p) of this token minus the ratio times the return [n]."""
        assert teacher is not None
        log_q, log_p = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
        # The single-step term: the expectation over the next token is exact, not sampled.
        here = (log_q.exp() * (log_q - log_p)).sum(-1)
        old, later = prepared.unbind(1)
        # q / q_old: the importance weight of the sampled token, which carries the policy gradient.
        ratio = (log_q.gather(-1, labels[:, None]).squeeze(-1) - old).exp()
        return here - ratio * later

    def _returns(self, tokens: Tokens, reward: Tensor) -> Tensor:
        """For each token the sum, or mean, of the rewards after it in its answer [n]."""
        seen, starts = tokens.seen(self), _starts(tokens)
        later = _behind(torch.where(seen, reward.double(), 0.0), starts)
        if self.length_normalised:
            later = later / _behind(seen.double(), starts).clamp(min=1)
        return later.to(reward.dtype)

    def formula(self) -> str:
        """The formula as `kdcore plan` prints it."""
        later = "mean" if self.length_normalised else "sum"
        return f"(KL(q(1), p(1)) - RETURN(p(1), q(1), y, {later}))"


def _starts(tokens: Tokens) -> Tensor:
    """Whether an answer begins here; tokens are in the order of rows and positions [n]."""
    place = torch.stack([tokens.row, tokens.document], 1)
    starts = torch.ones(len(place), dtype=torch.bool, device=place.device)
    starts[1:] = (place[1:] != place[:-1]).any(1)
    return starts


def _behind(values: Tensor, starts: Tensor) -> Tensor:
    """For each token the sum of the values after it in its answer [n]."""
    answer = starts.cumsum(0) - 1
    through = values.cumsum(0)
    before = (through - values)[starts][answer]  # the sum before the answer's first token
    total = torch.zeros_like(values).index_add_(0, answer, values)[answer]
    return total - (through - before)


def _log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    return -F.cross_entropy(logits, labels, reduction="none")
