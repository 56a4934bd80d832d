"""Losses for teachers with another tokenizer: they compare spans of text, in each side's own ids.

A span is the smallest stretch of text that begins and ends at token boundaries of both tokenizers.
Its value is assigned to its first token; the loss is the mean over the spans of the step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdcore import PreparedLoss, Stage, Teacher, Tokens, component
from kdcore_losses.base import Share, number

_LEAST = 1e-8  # floor of a probability before its logarithm, as in TRL
_APART = 1e-6  # keeps probabilities below 1, as in tokenkit


class _OverSpans(PreparedLoss):
    """Base of the losses over spans."""

    own_vocabulary = True

    def faults(self, recipe: Stage) -> Iterable[str]:
        """Reject a teacher that knows only some ids, or none."""
        teacher = recipe.teacher
        if teacher is None or type(teacher).own_vocabulary is not Teacher.own_vocabulary:
            return
        if not teacher.gives_logits() or teacher.is_estimate() or teacher.ids_known() is not None:
            yield (
                f"the loss {self.name!r} compares all ids of the teacher, and {teacher.name!r} "
                "does not know all of them"
            )

    def _scale(self, tokens: Tokens, begins: Tensor) -> Tensor:
        """The factor that turns the mean over tokens into a mean over spans [n]."""
        spans = tokens.over_step((begins & tokens.seen(self)).double()).sum()
        return (tokens.count(self) / spans.clamp(min=1)).expand(len(begins))


class _Merged(_OverSpans):
    """Compares distributions of whole spans: the first token's, times the later tokens' likelihood.

    The span's value depends on the likelihood of its later tokens too. Their gradient is the
    derivative of the value in that log-likelihood, times the gradient of each token's log q.
    """

    def compare(self, q: Tensor, p: Tensor) -> Tensor:
        """Student [n, V] and teacher [n, V_teacher], which need not sum to 1 -> values [n]."""
        raise NotImplementedError

    def prepare(self, tokens: Tokens) -> Tensor:
        """Per token [n, 5]: whether it begins a span, later log-likelihoods of both, slope, scale.

        The later log-likelihoods (student, teacher) are those of the span after its first token;
        the slope is the derivative of the value in that of the student.
        """
        spans, nll = tokens.spans(), tokens.student_nll()
        begins = _begins(spans)
        later = torch.where(begins, _by_span(-nll.masked_fill(begins, 0), spans), 0)
        theirs = torch.where(begins, -tokens.span_nll()[:, 1], 0).to(later.dtype)
        slope = tokens.score(_Slope(self), prepared=torch.stack([later, theirs], 1))
        slope = _by_span(slope.masked_fill(~begins, 0), spans).masked_fill(begins, 0)
        scale = self._scale(tokens, begins)
        return torch.stack([begins.to(nll), later, theirs, slope.to(nll), scale.to(nll)], 1)

    def per_token_prepared(
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, prepared: Tensor
    ) -> Tensor:
        """The value at a span's first token; at later ones 0 with its gradient [n]."""
        assert teacher is not None
        begins, later, theirs, slope, scale = prepared.unbind(1)
        here = self._at(student, teacher, later, theirs)
        return scale * torch.where(begins > 0, here, slope * _only_gradient(student, labels))

    def _at(self, student: Tensor, teacher: Tensor, later: Tensor, theirs: Tensor) -> Tensor:
        q, p = student.softmax(-1), teacher.softmax(-1)
        return self.compare(q * later.exp()[:, None], p * theirs.exp()[:, None])


class _Slope(PreparedLoss):
    """The derivative of a span's value in the log-likelihood of the student's later tokens."""

    own_vocabulary = True

    def __init__(self, of: _Merged) -> None:
        self.of, self.name = of, of.name  # type: ignore[misc]

    def per_token_prepared(
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, prepared: Tensor
    ) -> Tensor:
        assert teacher is not None
        later, theirs = prepared.unbind(1)
        with torch.enable_grad():
            later = later.detach().requires_grad_()
            values = self.of._at(student.detach(), teacher, later, theirs)
            (slope,) = torch.autograd.grad(values.sum(), later)
        return slope


@component
class UniversalLogitDistillation(_Merged):
    """The L1 distance of both sides' sorted probabilities: sum of |q_(i) - p_(i)|.

    Boizard et al. 2024, arXiv:2402.12030; spans are merged as in TRL's ULDLoss ("observed").
    """

    name = "uld"

    def compare(self, q: Tensor, p: Tensor) -> Tensor:
        """The L1 distance; the smaller vocabulary is padded with zeros."""
        return _sorted_distance(q, p)

    def formula(self) -> str:
        """The formula as `kdcore plan` prints it."""
        return "ULD(p(1), q(1))"


@component
class GeneralOnPolicyLogitDistillation(_Merged):
    """Jensen-Shannon divergence over the ids that both vocabularies share, `uld` over the rest.

    TRL's GOLD (Patiño et al. 2025). The weights are the share of the teacher's ids that the student
    has and 1 minus it, or `matched_weight` and 1 minus it. `beta` as in `jsd`.
    """

    name = "gold"
    beta: Share = 0.5
    matched_weight: Annotated[
        Literal["share"] | Share, Field(description="of the shared ids, or their share")
    ] = "share"

    def __post_init__(self) -> None:
        self._partner: Tensor | None = None  # [V]: the teacher's id for each student id, or -1
        self._taken = torch.empty(0, dtype=torch.bool)  # [V_teacher]: ids with a partner

    def prepare(self, tokens: Tokens) -> Tensor:
        """Find the shared ids once, then prepare as every loss over spans."""
        if self._partner is None:
            ours, theirs = tokens.shared_ids()
            partner = torch.full((int(ours.max()) + 1,), -1, device=ours.device)
            self._partner = partner.index_copy_(0, ours, theirs)
            taken = torch.zeros(int(theirs.max()) + 1, dtype=torch.bool, device=ours.device)
            self._taken = taken.index_fill_(0, theirs, True)
            self._count = len(ours)
        return super().prepare(tokens)

    def compare(self, q: Tensor, p: Tensor) -> Tensor:
        """Both parts, weighted [n]."""
        assert self._partner is not None, "`prepare` runs before `compare`"
        partner, taken = _cut(self._partner, q, -1), _cut(self._taken, p, False)
        partner = torch.where(partner < p.shape[1], partner, -1)
        shared = self._divergence(q, p[:, partner.clamp(min=0)])
        matched = shared.masked_fill(partner < 0, 0).sum(-1)
        others = _sorted_distance(q.masked_fill(partner >= 0, 0), p.masked_fill(taken, 0))
        if self._count in (q.shape[1], p.shape[1]):  # one vocabulary contains the other
            others = torch.zeros_like(others)
        weight = self.matched_weight
        if weight == "share":
            weight = self._count / p.shape[1]
        return weight * matched + (1 - weight) * others

    def _divergence(self, q: Tensor, p: Tensor) -> Tensor:
        """Each id's summand of the divergence [n, V]."""
        log_q, log_p = q.clamp(min=_LEAST).log(), p.clamp(min=_LEAST).log()
        if self.beta in (0, 1):
            one, other = (log_p, log_q) if self.beta == 0 else (log_q, log_p)
            return one.exp() * (one - other)
        beta = torch.full((), self.beta, dtype=q.dtype, device=q.device)
        # log of m = (1 - beta) q + beta p, by logaddexp on the logarithms that are at hand
        log_m = torch.logaddexp(log_q + (-beta).log1p(), log_p + beta.log())
        both = [log.exp() * (log - log_m) for log in (log_p, log_q)]
        return self.beta * both[0] + (1 - self.beta) * both[1]

    def formula(self) -> str:
        """The formula as `kdcore plan` prints it."""
        return f"GOLD(p(1), q(1), {number(self.beta)})"


@component
class ApproximateLikelihoodMatching(_OverSpans):
    """Binary cross-entropy between the likelihoods that both sides assign to a span.

    The likelihoods are p^(1/tau) and q^(1/tau), where p and q are products over the span's tokens.
    Minixhofer et al. 2025 (ALM), arXiv:2503.20083, as tokenkit's `binary_ce` over all spans that
    both tokenisations share. Its merging of spans by the probability of a space is not implemented.
    """

    name = "alm"
    only_prepared = True
    tau: Annotated[float, Field(gt=0, description="temperature of the likelihoods")] = 100.0

    def prepare(self, tokens: Tokens) -> Tensor:
        """A span's value at its first token, the derivative in its log q, and the scale [n, 3]."""
        spans, nll = tokens.spans(), tokens.student_nll()
        begins = _begins(spans)
        log_q, log_p = _by_span(-nll, spans), -tokens.span_nll().sum(1).to(nll)
        log_p = _by_span(log_p.masked_fill(~begins, 0), spans)
        # A span's log q is the sum over its tokens, so this slope is the derivative in each of
        # them.
        with torch.enable_grad():
            leaf = log_q.detach().requires_grad_()
            values = self.between(log_p, leaf)
            (slope,) = torch.autograd.grad(values.sum(), leaf)
        value = values.detach().masked_fill(~begins, 0)
        slope = slope.masked_fill(spans < 0, 0)
        return torch.stack([value, slope, self._scale(tokens, begins).to(nll)], 1)

    def between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Log-likelihoods of spans [n] -> the binary cross-entropy [n]."""
        log_p, log_q = log_p / self.tau - _APART, log_q / self.tau - _APART
        # -(P log Q + (1 - P) log(1 - Q)), with 1 - P = -expm1(log P), exact where P is close to 1
        return -(log_p.exp() * log_q + -log_p.expm1() * _log_of_rest(log_q))

    def per_token_prepared(
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, prepared: Tensor
    ) -> Tensor:
        """The span's value at its first token, and at each token its share of the gradient [n]."""
        value, slope, scale = prepared.unbind(1)
        return scale * (value + slope * _only_gradient(student, labels))

    def formula(self) -> str:
        """The formula as `kdcore plan` prints it."""
        return f"ALM(p(1), q(1), y, {number(self.tau)})"


def _begins(spans: Tensor) -> Tensor:
    """Whether a span begins here; tokens are in the order of rows and positions [n]."""
    begins = spans >= 0
    begins[1:] &= spans[1:] != spans[:-1]
    return begins


def _by_span(values: Tensor, spans: Tensor) -> Tensor:
    """The sum over each token's span [n]; tokens outside of spans (-1) form one group."""
    sums = torch.zeros(len(values) + 1, dtype=values.dtype, device=values.device)
    return sums.index_add_(0, spans + 1, values)[spans + 1]


def _only_gradient(student: Tensor, labels: Tensor) -> Tensor:
    """0 in value, with the gradient of the label's log-likelihood [n]."""
    log_q = -F.cross_entropy(student, labels, reduction="none")
    return log_q - log_q.detach()


def _sorted_distance(q: Tensor, p: Tensor) -> Tensor:
    """The sum of |q_(i) - p_(i)|, both sides sorted [n]."""
    q, p = (each.sort(dim=-1, descending=True).values for each in (q, p))
    missing = q.shape[1] - p.shape[1]
    q, p = F.pad(q, (0, max(0, -missing))), F.pad(p, (0, max(0, missing)))
    return (q - p).abs().sum(-1)


def _cut(table: Tensor, like: Tensor, filling: float) -> Tensor:
    """A table by id, cut or padded to the width of the logits."""
    width = like.shape[1]
    return F.pad(table[:width], (0, max(0, width - len(table))), value=filling)


def _log_of_rest(log: Tensor) -> Tensor:
    """log(1 - exp(log)) for log < 0 (log1mexp).

    log1p(-exp) is accurate below -ln 2, log(-expm1) above it (Maechler 2012).
    """
    return torch.where(log < -0.6931, (-log.exp()).log1p(), (-log.expm1()).log())
