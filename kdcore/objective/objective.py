"""What is trained: trunk, weights of every token in every term, chunked loss.

The module is what DDP wraps. Every denominator is known before the first backward: a term's value
is its weight times the mean over the tokens that it sees in the whole optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdcore.data.batch import Batch, PartOutputs
from kdcore.distributed import Total
from kdcore.models.head import accumulation_dtype, chunk_size, no_autocast
from kdcore.objective.chunked_loss import ChunkedLoss, ChunkedLossInputs, Values

if TYPE_CHECKING:
    from kdcore.api.contracts import Term
    from kdcore.models.causal_lm import LanguageModel


@dataclass(frozen=True, eq=False)
class TokenMask:
    """Which of a micro-batch's valid tokens the selection kept, and the step's counts."""

    keep: Tensor | None  # bool [valid tokens], or floats: their weights; None without a selection
    valid: Tensor  # scalars: tokens of the whole optimizer step,
    ranked: Tensor  # of these, those that were ranked against each other,
    kept: Tensor  # of these those that were kept, of weights those above 0,
    mass: Tensor | None = None  # and of weights their sum; None: the selection gave no weights
    prepared: Mapping[str, Tensor] = field(default_factory=dict)  # by term: [valid tokens, ...]
    kept_here: int | None = None  # at most so many of this micro-batch, where the host knows it
    where: Tensor | None = None  # bool [valid tokens]: those that are counted; None: all
    where_here: int | None = None  # how many these are of this micro-batch
    narrowed: Mapping[str, TokenMask] = field(default_factory=dict)  # of terms with a `where`

    def of(self, label: str) -> TokenMask:
        """The same as the term of this label sees it: of its documents only."""
        return self.narrowed.get(label, self)

    def only(self, where: Tensor, valid: Tensor, total: Total) -> TokenMask:
        """Of these tokens only, bool [valid tokens], of which the step has `valid`."""
        if self.keep is None:
            return replace(self, valid=valid, ranked=valid, kept=valid, where=where)
        weighed = self.keep * where
        counts = torch.stack([where.sum(), (weighed > 0).sum(), weighed.sum()])
        ranked, kept, mass = total(counts.to(accumulation_dtype(self.keep.dtype)))
        mass = None if self.mass is None else mass
        return replace(self, valid=valid, ranked=ranked, kept=kept, mass=mass, where=where)

    def split(self, by_part: Callable[[Tensor], Sequence[Tensor]], parts: int) -> list[TokenMask]:
        """What is given by token, for each micro-batch."""

        def each(values: Tensor | None) -> Sequence[Tensor | None]:
            return [None] * parts if values is None else by_part(values)

        inner = {label: mask.split(by_part, parts) for label, mask in self.narrowed.items()}
        return [
            replace(self, keep=keep, where=where, narrowed={k: v[n] for k, v in inner.items()})
            for n, (keep, where) in enumerate(zip(each(self.keep), each(self.where), strict=True))
        ]

    def mask(self, on: str) -> Tensor | None:
        """The tokens that a term with this `on` sees, or their weights; None for all."""
        if self.keep is None or on == "all":
            return self.where
        kept = self.keep if on == "kept" else self.keep == 0
        return kept if self.where is None else kept * self.where

    def over_count(self, weight: float, on: str, dtype: torch.dtype) -> Tensor:
        """The weight over the term's denominator; 0 where weights add up to 0."""
        count = self.count(on, dtype)
        if self.mass is None or on != "kept":
            return weight / count
        return torch.where(count == 0, 0, weight / count)

    def most(self, on: str) -> int | None:
        """At most so many tokens that a term with this `on` sees; None: only the device knows."""
        if self.where is not None:
            return self.where_here
        return self.kept_here if on == "kept" else None

    def count(self, on: str, dtype: torch.dtype) -> Tensor:
        """How many tokens a term sees in the whole step, at least 1; of weights their sum.

        A micro-batch that ranks its own tokens counts as its share of the step's, whatever it
        keeps of them.
        """
        if self.keep is None:
            return self.valid.to(dtype).clamp(min=1)
        valid, ranked, kept = (n.to(dtype) for n in (self.valid, self.ranked, self.kept))
        shares = {"all": ranked, "kept": kept, "dropped": ranked - kept}
        if self.mass is not None and on == "kept":
            return self.mass.to(dtype) * (valid / ranked.clamp(min=1))
        return (shares[on] * (valid / ranked.clamp(min=1))).clamp(min=1)


SelectFn = Callable[[Tensor], TokenMask]
"""The micro-batch's states [rows * time, H] -> what its selection kept."""


class Objective(nn.Module):
    """The student and the weighted terms. `forward` gives one micro-batch's share of the loss."""

    def __init__(self, student: LanguageModel, chunk: int | None = None) -> None:
        super().__init__()
        self.model = student.model
        self.student = student
        self.chunk = chunk

    def forward(
        self,
        batch: Batch,
        terms: Sequence[tuple[Term, float]],
        values: Values,
        teacher: PartOutputs | None,
        choose: SelectFn,
    ) -> tuple[Tensor, Tensor]:
        """One micro-batch's share of the loss, and for the log each term's share of it [terms].

        `terms` come with their weights of this step and none is zero. The states go to `choose`
        without gradient, so a step of one micro-batch is scored by its training forward.
        """
        head = self.student
        states = head.states(batch)
        with no_autocast(states.device.type):
            with torch.no_grad():
                seen = choose(states.detach())
            work = self._work(batch, terms, values, teacher, seen, accumulation_dtype(states.dtype))
            total: Tensor = ChunkedLoss.apply(  # type: ignore[no-untyped-call]
                states, head.weight, head.bias, head.computed_weight(), work
            )
        return total, work.sums

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
        weights = torch.stack([_laid(*both, len(valid)) for both in zip(each, masks, strict=True)])
        prepared = [seen.prepared.get(term.label) for term, _ in terms]
        most = None
        if all(mask is not None for mask in masks):
            if _waiting_costs(valid):
                most = _most(seen, [term for term, _ in terms], len(valid))
            places, weights = _compact(weights, most)
            valid = valid[places]
            prepared = [None if each is None else each[places] for each in prepared]
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
            repeats=most is not None,
        )


def _waiting_costs(tensor: Tensor) -> bool:
    """Whether to ask how many there are of something would be to wait for a device."""
    return tensor.is_cuda


def _most(seen: TokenMask, terms: Sequence[Term], tokens: int) -> int | None:
    """At most so many of the tokens are seen by some term; None where only the device knows."""
    masks = [(seen.of(term.label), term.on) for term in terms]
    each = {(id(mask), on): mask.most(on) for mask, on in masks}
    known = [most for most in each.values() if most is not None]
    return min(sum(known), tokens) if len(known) == len(each) else None


def _compact(weights: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """The places of the tokens that some term sees, and their weights [terms, seen].

    With `most` the host waits for nothing. Where there are fewer, which takes scores that are NaN,
    the first one comes again, of no weight.
    """
    some = (weights != 0).any(0)
    if most is None:
        places = some.nonzero().squeeze(1)
        return places, weights[:, places]
    places = some.nonzero_static(size=most, fill_value=-1).squeeze(1)
    is_one = places >= 0
    places = torch.where(is_one, places, places[:1])
    return places, weights[:, places] * is_one


def _laid(each: Tensor, mask: Tensor | None, tokens: int) -> Tensor:
    """[tokens]: a token's share in a term where the term sees it, else 0."""
    return each.expand(tokens) if mask is None else each * mask
