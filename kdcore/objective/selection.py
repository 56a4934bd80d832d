"""Selection: scores the tokens of an optimizer step and chooses which are kept.

With one micro-batch and one process, scores come from the training forward itself. Otherwise the
whole step is scored first without gradient and ranked over all processes, then trained. With `scope
= "micro_batch"`, each micro-batch ranks its own tokens in its training forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kdcore.api.loss import Term
from kdcore.api.tokens import PreparedLoss, Selection, Tokens
from kdcore.data.collate import sent
from kdcore.distributed import Gather, Total, alone
from kdcore.errors import PluginError
from kdcore.guard import describe_component, plugin_errors
from kdcore.models.head import upcast
from kdcore.objective.objective import SelectFn, TokenMask
from kdcore.objective.readings import MicroBatch, View
from kdcore.objective.step_tokens import Chosen, RankedScores, ScoredBatch, StepTokens
from kdcore.objective.teachers import has_own_vocabulary, may_skip

if TYPE_CHECKING:
    from kdcore.api.run import Run


@dataclass(eq=False)
class SelectionResult:
    """The selection of a step: a function per micro-batch, and values for the log."""

    valid: Tensor  # valid tokens over all processes
    masks: list[SelectFn] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)  # this process's counts, appended as found
    ranked: RankedScores | None = None  # the last ranking, if the selection ranks
    known: Tensor | None = None  # tokens that the teacher covers, all processes; None: all


def select(
    run: Run,
    readings: Sequence[MicroBatch],
    step: int,
    gather: Gather,
    total: Total,
    terms: Sequence[Term] = (),
) -> SelectionResult:
    """Select the tokens of a step and prepare its losses. Runs without gradient."""
    here = sum(len(reading.batch.valid) for reading in readings)
    result = SelectionResult(total(torch.full((), float(here), device=run.device)))
    selection = run.recipe.selection
    prepared = [term for term in terms if isinstance(term.loss, PreparedLoss)]
    builder = _SelectionBuilder(run, step, gather, total, result, terms)
    builder.count_views(readings)
    alone = run.processes == 1 and len(readings) == 1
    if selection is None and not prepared:
        result.masks = [builder.all_tokens(reading) for reading in readings]
    elif alone or (run.recipe.scope == "micro_batch" and not prepared):
        result.masks = [builder.in_forward(reading) for reading in readings]
    else:
        builder.score_first(readings)
    return result


@dataclass(frozen=True, eq=False)
class _SelectionBuilder:
    """Builds the selection of one step."""

    run: Run
    step: int
    gather: Gather
    total: Total
    result: SelectionResult
    terms: Sequence[Term]
    narrow: dict[str, tuple[View, Tensor]] = field(default_factory=dict)
    """By term label: its view, and the number of tokens in it over the step."""

    def count_views(self, readings: Sequence[MicroBatch]) -> None:
        """Fill `narrow`: count on the host, then sum over all processes."""
        found = {term.label: self._view(term) for term in self.terms}
        views = {label: view for label, view in found.items() if view != View(None, None)}
        if views:
            counts_here = [sum(r.matching(view).sum() for r in readings) for view in views.values()]
            counts = self.total(sent(np.array(counts_here, np.float32), self.run.device))
            counted = zip(views.items(), counts, strict=True)
            self.narrow.update({label: (view, count) for (label, view), count in counted})
        self.result.known = self._known(readings)

    def _view(self, term: Term) -> View:
        teacher = self.run.teacher if term.loss.needs_teacher else None
        own = term.loss.own_vocabulary
        if teacher is None or not may_skip(teacher, own=own):
            return View(term.where, None)
        return View(term.where, teacher, own and has_own_vocabulary(teacher))

    def _known(self, readings: Sequence[MicroBatch]) -> Tensor | None:
        """The number of tokens in the step that the teacher covers; None: all, or unused."""
        views = [view for view, _ in self.narrow.values() if view.teacher]
        if not views:
            return None
        view = min(views, key=lambda view: view.own)._replace(where=None)
        here = sum(r.matching(view).sum() for r in readings)
        return self.total(torch.full((), float(here), device=self.run.device))

    def all_tokens(self, reading: MicroBatch) -> SelectFn:
        """All tokens of a micro-batch, for recipes without a selection."""
        valid = self.result.valid
        seen = self._narrowed(TokenMask(None, valid, valid, valid), reading.view, _identity)
        return _constant(self._with_host_counts(seen, reading))

    def _narrowed(
        self, seen: TokenMask, view_of: Callable[[View], Tensor], total: Total
    ) -> TokenMask:
        """The mask with one narrowed to each term's view; `total` sums counts over processes."""
        masks = {
            label: seen.only(view_of(view), valid, total)
            for label, (view, valid) in self.narrow.items()
        }
        return replace(seen, narrowed=masks)

    def _with_host_counts(self, seen: TokenMask, reading: MicroBatch) -> TokenMask:
        """The mask with the token count of each view in this micro-batch, known on the host."""
        masks = {
            label: replace(mask, where_here=int(reading.matching(self.narrow[label][0]).sum()))
            for label, mask in seen.narrowed.items()
        }
        return replace(seen, narrowed=masks)

    def _parts(
        self, seen: TokenMask, tokens: StepTokens, readings: Sequence[MicroBatch]
    ) -> list[TokenMask]:
        """A mask in the order of the step, split into micro-batches in their own order."""
        masks = seen.split(tokens.by_part, len(readings))
        return [
            self._with_host_counts(mask, reading)
            for mask, reading in zip(masks, readings, strict=True)
        ]

    def in_forward(self, reading: MicroBatch) -> SelectFn:
        """Score the states of the training forward; rank within this micro-batch."""

        def select(states: Tensor) -> TokenMask:
            tokens = _tokens(self.run, [ScoredBatch(reading, states)], self.step, alone)
            seen = self._within(tokens)
            prepared = self._prepared(tokens, seen)
            values = {label: tokens.by_part(ready)[0] for label, ready in prepared.items()}
            (mask,) = self._parts(seen, tokens, [reading])
            return replace(mask, prepared=values)

        return select

    def score_first(self, readings: Sequence[MicroBatch]) -> None:
        """Score all micro-batches first, with at most one extra trunk forward of the student."""
        with torch.no_grad():
            tokens = tokens_of(self.run, readings, self.step, self.gather)
            if self.run.recipe.scope == "micro_batch":
                seen, masks = self._score_first_within(tokens, readings)
            else:
                seen, masks = self._over_step(tokens, readings)
            for label, ready in self._prepared(tokens, seen).items():
                for n, values in enumerate(tokens.by_part(ready)):
                    masks[n] = replace(masks[n], prepared={**masks[n].prepared, label: values})
        self.result.masks = [_constant(mask) for mask in masks]

    def _within(self, tokens: StepTokens) -> TokenMask:
        """The mask of a micro-batch that ranks its own tokens, in the order of the step."""
        selection, valid = self.run.recipe.selection, self.result.valid
        if selection is None:
            return self._narrowed(TokenMask(None, valid, valid, valid), tokens.view, _identity)
        keep = checked_keep(selection, tokens)
        kept, mass = self._counted(tokens, keep)
        ranked = torch.full((), len(keep), device=keep.device)
        seen = TokenMask(keep, valid, ranked, kept, mass, kept_here=tokens.most_kept(keep))
        return self._narrowed(seen, tokens.view, _identity)

    def _score_first_within(
        self, tokens: StepTokens, readings: Sequence[MicroBatch]
    ) -> tuple[TokenMask, list[TokenMask]]:
        # Each micro-batch ranks its own tokens; the mask of the step, which losses prepare with,
        # joins theirs and sums their counts.
        parts = [tokens.alone(n) for n in range(len(readings))]
        masks_of_step = [self._within(part) for part in parts]
        masks = [
            self._parts(seen, part, [reading])[0]
            for part, seen, reading in zip(parts, masks_of_step, readings, strict=True)
        ]
        keeps = [seen.keep for seen in masks if seen.keep is not None]
        keep = tokens.joined(keeps) if len(keeps) == len(masks) else None
        valid = self.result.valid
        kept = self.total(torch.stack([seen.kept.float() for seen in masks]).sum())
        masses = [seen.mass for seen in masks if seen.mass is not None]
        mass = self.total(torch.stack(masses).sum()) if masses else None
        seen = TokenMask(keep, valid, valid, kept, mass)
        return self._narrowed(seen, tokens.view, self.total), masks

    def _over_step(
        self, tokens: StepTokens, readings: Sequence[MicroBatch]
    ) -> tuple[TokenMask, list[TokenMask]]:
        """The mask of the whole step, and that of each micro-batch."""
        selection, valid = self.run.recipe.selection, self.result.valid
        if selection is None:
            seen = TokenMask(None, valid, valid, valid)
            seen = self._narrowed(seen, tokens.view, self.total)
            return seen, self._parts(seen, tokens, readings)
        keep = checked_keep(selection, tokens)
        kept_here, mass = self._counted(tokens, keep)
        kept = self.total(kept_here.float())
        seen = TokenMask(keep, valid, valid, kept, None if mass is None else self.total(mass))
        seen = self._narrowed(seen, tokens.view, self.total)
        parts = self._parts(seen, tokens, readings)
        counts = _counts(tokens.by_part(keep))
        counted = zip(parts, counts, strict=True)
        return seen, [replace(mask, kept_here=count) for mask, count in counted]

    def _counted(self, tokens: StepTokens, keep: Tensor) -> tuple[Tensor, Tensor | None]:
        """The tokens kept on this process, and the sum of weights if any; recorded for the log."""
        self.result.ranked = tokens.ranked
        kept = (keep > 0).sum() if keep.is_floating_point() else keep.sum()
        self.result.kept.append(kept)
        return kept, keep.sum() if keep.is_floating_point() else None

    def _prepared(self, tokens: StepTokens, seen: TokenMask) -> dict[str, Tensor]:
        """The output of each `PreparedLoss` [n, ...], in the order of the step, by label."""
        tokens.chosen = Chosen(self.terms, seen)
        found: dict[str, Tensor] = {}
        for term in self.terms:
            if isinstance(term.loss, PreparedLoss):
                mask = seen.of(term.label).mask(term.on)
                ready = prepared_by(term.loss, tokens)
                found[term.label] = ready if mask is None else _where_seen(ready, mask > 0)
        return found


def _identity(value: Tensor) -> Tensor:
    return value


def _where_seen(ready: Tensor, seen: Tensor) -> Tensor:
    """Prepared values of seen tokens; unseen tokens copy those of a seen one.

    Unseen tokens have weight 0, but 0 * NaN is NaN, and a teacher that covers only some tokens
    gives NaN for the others.
    """
    if not len(ready):
        return ready
    first = ready.index_select(0, seen.int().argmax().reshape(1)).nan_to_num()
    return torch.where(seen if ready.ndim == 1 else seen[:, None], ready, first)


def _counts(parts: Sequence[Tensor]) -> list[int | None]:
    """The tokens kept in each part. On a GPU one sync for all parts instead of one for each."""
    if not parts[0].is_cuda:
        return [None] * len(parts)
    found: list[int | None] = torch.stack([(some != 0).sum() for some in parts]).tolist()
    return found


def tokens_of(run: Run, readings: Sequence[MicroBatch], step: int, gather: Gather) -> StepTokens:
    """The tokens of a step. The student's trunk runs over a micro-batch at first use."""

    def states(reading: MicroBatch) -> Tensor:
        with run.autocast():
            return run.language_model.states(reading.batch)

    parts = [ScoredBatch(reading, partial(states, reading)) for reading in readings]
    return _tokens(run, parts, step, gather)


def _constant(seen: TokenMask) -> SelectFn:
    return lambda states: seen


def _tokens(run: Run, parts: Sequence[ScoredBatch], step: int, gather: Gather) -> StepTokens:
    return StepTokens(
        parts, run.language_model, run.teacher, step=step, seed=run.seed, gather=gather
    )


def checked_keep(selection: Selection, tokens: Tokens) -> Tensor:
    """A selection's bools or weights [n], checked.

    Negative and non-finite weights are errors. On a GPU, checking would sync the device: there they
    become NaN, as does the loss, which stops the run.
    """
    with plugin_errors(selection, "keep"):
        keep = selection.keep(tokens)
    wanted = (len(tokens.labels),)
    fits = isinstance(keep, Tensor) and keep.shape == wanted
    if not fits or not (keep.dtype == torch.bool or keep.is_floating_point()):
        found = (
            f"{keep.dtype} of shape {tuple(keep.shape)}"
            if isinstance(keep, Tensor)
            else type(keep).__name__
        )
        raise PluginError(
            f"{describe_component(selection)} returned {found} from keep, expected a bool tensor "
            f"of shape {wanted}, or floats: weights"
        )
    if keep.dtype == torch.bool:
        return keep
    good = (keep >= 0) & keep.isfinite()
    if keep.device.type == "cpu" and not good.all():
        bad = float(keep[~good][0])
        raise PluginError(
            f"{describe_component(selection)} returned the weight {bad} from keep: weights are "
            "finite and at least 0"
        )
    return torch.where(good, upcast(keep), math.nan)


def prepared_by(loss: PreparedLoss, tokens: Tokens) -> Tensor:
    """The output of `prepare`, [n] or [n, k], checked."""
    with torch.no_grad(), plugin_errors(loss, "prepare"):
        ready = loss.prepare(tokens)
    count = len(tokens.labels)
    if not isinstance(ready, Tensor) or ready.ndim not in (1, 2) or len(ready) != count:
        found = (
            f"a tensor of shape {tuple(ready.shape)}"
            if isinstance(ready, Tensor)
            else type(ready).__name__
        )
        raise PluginError(
            f"{describe_component(loss)} returned {found} from prepare, expected one row for "
            f"each of {count} tokens: a tensor of shape ({count},) or ({count}, k)"
        )
    return ready.detach()
