"""The trained module: trunk, the weight of every token in every term, chunked loss. DDP wraps it.

The value of a term is its weight times the mean over the tokens that it sees in the whole optimizer
step, over all micro-batches and processes. A mean of micro-batch means would weight the tokens of
short micro-batches more, and the objective would depend on `micro_batch` and the world size. The
denominators are therefore counted before the first backward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdcore.data.batch import Batch, PartOutputs, StatesFn
from kdcore.distributed import Total
from kdcore.models.head import accumulation_dtype, chunk_size, no_autocast, upcast
from kdcore.objective.chunked_loss import ChunkedLoss, ChunkedLossInputs, Values
from kdcore.objective.hidden_states import HiddenTerms, compares_states

if TYPE_CHECKING:
    from kdcore.api.loss import Term
    from kdcore.models.causal_lm import LanguageModel


@dataclass(frozen=True, eq=False)
class TokenMask:
    """Which valid tokens of a micro-batch the selection kept, and the counts of the step."""

    keep: Tensor | None  # [valid tokens] bools, or float weights; None: no selection
    valid: Tensor  # scalar: valid tokens of the whole optimizer step
    ranked: Tensor  # scalar: those that were ranked together
    kept: Tensor  # scalar: those that were kept, or have a weight above 0
    mass: Tensor | None = None  # scalar: the sum of the weights; None: bools
    prepared: Mapping[str, Tensor] = field(default_factory=dict)  # by label: [valid tokens, ...]
    kept_here: int | None = None  # upper bound for this micro-batch, if the host knows
    where: Tensor | None = None  # bool [valid tokens]: those in view; None: all
    where_here: int | None = None  # their number in this micro-batch
    narrowed: Mapping[str, TokenMask] = field(default_factory=dict)  # by label

    def of(self, label: str) -> TokenMask:
        """The mask narrowed to a term's view: its documents, and what its teacher covers."""
        return self.narrowed.get(label, self)

    def only(self, where: Tensor, valid: Tensor, total: Total) -> TokenMask:
        """Restricted to tokens in `where`, bool [valid tokens]; the step has `valid` of them."""
        if self.keep is None:
            return replace(self, valid=valid, ranked=valid, kept=valid, where=where)
        # Narrowing changes the denominators, so they are counted again over the step.
        weighed = self.keep * where
        counts = torch.stack([where.sum(), (weighed > 0).sum(), weighed.sum()])
        ranked, kept, mass = total(counts.to(accumulation_dtype(self.keep.dtype)))
        mass = None if self.mass is None else mass
        return replace(self, valid=valid, ranked=ranked, kept=kept, mass=mass, where=where)

    def split(self, by_part: Callable[[Tensor], Sequence[Tensor]], parts: int) -> list[TokenMask]:
        """The mask of each micro-batch: splits all per-token values."""

        def each(values: Tensor | None) -> Sequence[Tensor | None]:
            return [None] * parts if values is None else by_part(values)

        inner = {label: mask.split(by_part, parts) for label, mask in self.narrowed.items()}
        return [
            replace(self, keep=keep, where=where, narrowed={k: v[n] for k, v in inner.items()})
            for n, (keep, where) in enumerate(zip(each(self.keep), each(self.where), strict=True))
        ]

    def mask(self, on: str) -> Tensor | None:
        """The tokens that a term with this `on` sees, or their weights; None: all."""
        if self.keep is None or on == "all":
            return self.where
        kept = self.keep if on == "kept" else self.keep == 0
        return kept if self.where is None else kept * self.where

    def over_count(self, weight: float, on: str, dtype: torch.dtype) -> Tensor:
        """The term's weight / denominator; 0 where the token weights sum to 0."""
        count = self.count(on, dtype)
        if self.mass is None or on != "kept":
            return weight / count
        return torch.where(count == 0, 0, weight / count)

    def upper_bound(self, on: str) -> int | None:
        """An upper bound of the tokens that a term sees here; None: only the device knows."""
        if self.where is not None:
            return self.where_here
        return self.kept_here if on == "kept" else None

    def count(self, on: str, dtype: torch.dtype) -> Tensor:
        """The number of tokens that a term sees in the whole step, at least 1; the sum of weights.

        A micro-batch that ranks its own tokens has the share ranked / valid of the step, however
        many it keeps: (ranked / valid) * sum / kept is sum / (kept * valid / ranked). With scope =
        "step" ranked is valid, and the factor is 1.
        """
        if self.keep is None:
            return self.valid.to(dtype).clamp(min=1)
        valid, ranked, kept = (n.to(dtype) for n in (self.valid, self.ranked, self.kept))
        shares = {"all": ranked, "kept": kept, "dropped": ranked - kept}
        if self.mass is not None and on == "kept":
            return self.mass.to(dtype) * (valid / ranked.clamp(min=1))
        return (shares[on] * (valid / ranked.clamp(min=1))).clamp(min=1)


SelectFn = Callable[[Tensor], TokenMask]
"""A micro-batch's states [rows * time, H] -> its mask."""


class Objective(nn.Module):
    """The student, the weighted terms, and the parameters that terms learn.

    `forward` returns one micro-batch's part of the loss; the parts of a step sum to its loss.
    """

    def __init__(
        self,
        student: LanguageModel,
        chunk: int | None = None,
        hidden: HiddenTerms | None = None,
        *,
        scaled: bool = True,
    ) -> None:
        super().__init__()
        self.model = student.model
        self.hidden = hidden or HiddenTerms()
        self.learned = nn.ModuleList(self.hidden.learned().values())
        self.student = student
        self.chunk = chunk
        self.scaled = scaled  # whether anything multiplies the loss before its backward pass

    def forward(
        self,
        batch: Batch,
        terms: Sequence[tuple[Term, float]],
        values: Values,
        teacher: PartOutputs | None,
        select: SelectFn,
        teacher_states: StatesFn | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One micro-batch's part of the loss, and for the log each term's part of it [terms].

        `terms` have their weights of this step, none of which is zero; `values` evaluates those
        that compare logits. `select` gets the detached states of the training forward, so a step of
        one micro-batch needs no separate scoring pass.
        """
        head = self.student
        layer_states: Sequence[Tensor] = ()
        if teacher_states is None:
            states = head.states(batch)
        else:
            states, layer_states = head.layer_states(batch, self.hidden.student)
        logit_terms = [each for each in terms if not compares_states(each[0])]
        with no_autocast(states.device.type):
            with torch.no_grad():
                seen = select(states.detach())
            dtype = accumulation_dtype(states.dtype)
            if not logit_terms:
                total, sums = self._untouched(states), states.new_zeros(0, dtype=dtype)
            else:
                work = self._work(batch, logit_terms, values, teacher, seen, dtype)
                total = ChunkedLoss.apply(  # type: ignore[no-untyped-call]
                    states, head.weight, head.bias, head.computed_weight(), work
                )
                sums = work.sums
            if teacher_states is not None:
                state_sums = self._state_sums(batch, terms, seen, layer_states, teacher_states)
                total = total + torch.stack(list(state_sums.values())).sum()
                sums = _in_order(terms, sums, state_sums)
            if self.learned:
                total = total + self.hidden.idle(terms)
        return total, sums

    def _untouched(self, states: Tensor) -> Tensor:
        """A zero that depends on states, head weight and bias, for steps without logit terms.

        DDP waits for the gradient of every parameter; this gives the head one of 0.
        """
        used = (states, self.student.weight, self.student.bias)
        return torch.stack([0.0 * upcast(x.sum()) for x in used if x is not None]).sum()

    def _state_sums(
        self,
        batch: Batch,
        terms: Sequence[tuple[Term, float]],
        seen: TokenMask,
        layer_states: Sequence[Tensor],
        teacher: StatesFn,
    ) -> dict[str, Tensor]:
        """The weighted sum of each hidden-state term, by label, attached to the graph."""
        sums = {}
        for term, weight in terms:
            if compares_states(term):
                valid, weights = _seen_by(term, weight, seen, batch.valid, layer_states[0].dtype)
                student_states = [states[valid] for states in layer_states]
                values = self.hidden.values(term.label, student_states, teacher(valid))
                sums[term.label] = (values * weights).sum()
        return sums

    def _work(
        self,
        batch: Batch,
        terms: Sequence[tuple[Term, float]],
        values: Values,
        teacher: PartOutputs | None,
        seen: TokenMask,
        dtype: torch.dtype,
    ) -> ChunkedLossInputs:
        valid = batch.valid
        each = [seen.of(term.label).over_count(weight, term.on, dtype) for term, weight in terms]
        masks = [seen.of(term.label).mask(term.on) for term, _ in terms]
        weights = torch.stack(
            [_weights_per_token(*both, len(valid)) for both in zip(each, masks, strict=True)]
        )
        prepared = [seen.prepared.get(term.label) for term, _ in terms]
        bound = None
        # If every term sees a part only, tokens that none sees skip head and teacher.
        if all(mask is not None for mask in masks):
            if _count_needs_sync(valid):
                bound = _upper_bound(seen, [term for term, _ in terms], len(valid))
            indices, weights = _compact(weights, bound)
            valid = valid[indices]
            prepared = [None if each is None else each[indices] for each in prepared]
        device = batch.labels.device
        return ChunkedLossInputs(
            positions=valid,
            labels=batch.labels[valid],
            weights=weights,
            prepared=prepared,
            values=values,
            teacher=teacher,
            vocabulary=batch.vocabulary,
            chunk=self.chunk or chunk_size(batch.vocabulary, device),
            bend=self.student.bend,
            repeats=bound is not None,
            scaled=self.scaled,
        )


def _seen_by(
    term: Term, weight: float, seen: TokenMask, valid: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The flat positions that a term sees [n], and their weights / denominator [n]."""
    own = seen.of(term.label)
    mask = own.mask(term.on)
    factor = own.over_count(weight, term.on, accumulation_dtype(dtype))
    weights = _weights_per_token(factor, mask, len(valid))
    if mask is None:
        return valid, weights
    bound = _upper_bound(seen, [term], len(valid)) if _count_needs_sync(valid) else None
    indices, some = _compact(weights[None], bound)
    return valid[indices], some[0]


def _in_order(
    terms: Sequence[tuple[Term, float]], sums: Tensor, more: Mapping[str, Tensor]
) -> Tensor:
    """Each term's part [terms]: logit terms from `sums`, hidden-state terms from `more`."""
    logit_sums = iter(sums)
    parts = [more[t.label].detach() if t.label in more else next(logit_sums) for t, _ in terms]
    return torch.stack(parts)


def _count_needs_sync(tensor: Tensor) -> bool:
    """Whether reading a count of these elements would sync the device."""
    return tensor.is_cuda


def _upper_bound(seen: TokenMask, terms: Sequence[Term], tokens: int) -> int | None:
    """An upper bound of the tokens that any term sees; None: only the device knows."""
    masks = [(seen.of(term.label), term.on) for term in terms]
    bounds = {(id(mask), on): mask.upper_bound(on) for mask, on in masks}
    known = [bound for bound in bounds.values() if bound is not None]
    return min(sum(known), tokens) if len(known) == len(bounds) else None


def _compact(weights: Tensor, size: int | None) -> tuple[Tensor, Tensor]:
    """The indices of the tokens that any term sees, and their weights [terms, seen].

    `size` makes the output size static, which avoids a device sync. If fewer are seen, as with NaN
    scores, the first one fills up with weight 0.
    """
    is_seen = (weights != 0).any(0)
    if size is None:
        indices = is_seen.nonzero().squeeze(1)
        return indices, weights[:, indices]
    indices = is_seen.nonzero_static(size=size, fill_value=-1).squeeze(1)
    is_real = indices >= 0
    indices = torch.where(is_real, indices, indices[:1])
    return indices, weights[:, indices] * is_real


def _weights_per_token(factor: Tensor, mask: Tensor | None, tokens: int) -> Tensor:
    """[tokens]: weight / denominator, times the mask."""
    return factor.expand(tokens) if mask is None else factor * mask
