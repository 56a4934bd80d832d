"""Which tokens of a step are kept, and when that is found out.

With one micro-batch and one process the training forward itself is scored. Otherwise the step is
scored first without gradient, ranked over all processes, then trained. With `scope =
"micro_batch"` each micro-batch ranks its own tokens in its training forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdcore.api import Selection
from kdcore.blame import blame, described
from kdcore.errors import PluginError
from kdcore.gathering import Gather, Total, alone
from kdcore.objective import Choose, Seen
from kdcore.tokens import Ranked, Reading, Scored, Tokens

if TYPE_CHECKING:
    from kdcore.run import Run


@dataclass(eq=False)
class Choices:
    """One step's: how each micro-batch learns what was kept, and what the log wants to know."""

    valid: Tensor  # over all processes
    each: list[Choose] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)  # this process's counts, as they are found
    ranked: Ranked | None = None  # the last scores, where a selection ranks by scores


def choose(
    run: Run, readings: Sequence[Reading], step: int, gather: Gather, total: Total
) -> Choices:
    """The choices of a step. Selections run without gradient."""
    here = sum(len(reading.batch.valid) for reading in readings)
    choices = Choices(total(torch.tensor(float(here), device=run.device)))
    selection = run.recipe.selection
    if selection is None:
        choices.each = [_all_of(choices.valid) for _ in readings]
    elif run.recipe.scope == "micro_batch":
        choices.each = [_in_forward(run, selection, r, step, choices) for r in readings]
    elif run.processes == 1 and len(readings) == 1:
        choices.each = [_in_forward(run, selection, readings[0], step, choices)]
    else:
        _ahead(run, selection, readings, step, gather, total, choices)
    return choices


def _all_of(valid: Tensor) -> Choose:
    return lambda states: Seen(None, valid, valid, valid)


def _in_forward(
    run: Run, selection: Selection, reading: Reading, step: int, choices: Choices
) -> Choose:
    """Score the states of the training forward. Ranking is within this micro-batch."""

    def found(states: Tensor) -> Seen:
        tokens = _tokens(run, [Scored(reading, states)], step, alone)
        keep = keep_of(selection, tokens)
        choices.ranked = tokens.ranked
        choices.kept.append(keep.sum())
        ranked = torch.tensor(len(keep), device=keep.device)
        (here,) = tokens.by_part(keep)
        return Seen(here, choices.valid, ranked, keep.sum())

    return found


def _ahead(
    run: Run,
    selection: Selection,
    readings: Sequence[Reading],
    step: int,
    gather: Gather,
    total: Total,
    choices: Choices,
) -> None:
    """Score every micro-batch first; one more trunk forward of the student."""
    with torch.no_grad():
        tokens = tokens_of(run, readings, step, gather)
        keep = keep_of(selection, tokens)
        choices.ranked = tokens.ranked
        choices.kept.append(keep.sum())
        kept = total(keep.sum().float())
    choices.each = [
        _known(Seen(some, choices.valid, choices.valid, kept)) for some in tokens.by_part(keep)
    ]


def tokens_of(run: Run, readings: Sequence[Reading], step: int, gather: Gather) -> Tokens:
    """The tokens of a step; runs the student's trunk over them. Called without gradient."""
    with run.autocast():
        parts = [Scored(r, run.language_model.states(r.batch)) for r in readings]
    return _tokens(run, parts, step, gather)


def _known(seen: Seen) -> Choose:
    return lambda states: seen


def _tokens(run: Run, parts: Sequence[Scored], step: int, gather: Gather) -> Tokens:
    return Tokens(parts, run.language_model, run.teacher, step=step, seed=run.seed, gather=gather)


def keep_of(selection: Selection, tokens: Tokens) -> Tensor:
    """What a selection keeps of the tokens [n], checked."""
    with blame(selection, "keep"):
        keep = selection.keep(tokens)
    wanted = (len(tokens.labels),)
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool or keep.shape != wanted:
        found = (
            f"{keep.dtype} of shape {tuple(keep.shape)}"
            if isinstance(keep, Tensor)
            else type(keep).__name__
        )
        raise PluginError(
            f"{described(selection)} returned {found} from keep, expected a bool tensor of "
            f"shape {wanted}"
        )
    return keep
