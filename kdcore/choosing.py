"""What a selection keeps of real rows, token by token: to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kdcore.batch import Row
from kdcore.batches import Collate
from kdcore.gathering import alone
from kdcore.rules import needs_teacher
from kdcore.selecting import keep_of, tokens_of
from kdcore.teachers import load_teacher
from kdcore.tokens import Reading, Tokens
from kdcore.training_rows import training_rows

if TYPE_CHECKING:
    from kdcore.run import Run


@dataclass(frozen=True, eq=False)
class ChosenRow:
    """A row, and what became of each of its tokens; arrays [time]."""

    input_ids: np.ndarray
    document: np.ndarray  # the token's document in the split
    valid: np.ndarray  # bool: it can be trained; no prompt, no document's first token
    kept: np.ndarray  # bool
    nll: np.ndarray  # the student's, in nats; NaN where not valid
    score: np.ndarray  # what the selection ranked by; NaN where there is none


def chosen_rows(run: Run, step: int) -> list[ChosenRow]:
    """The rows of a training step as the run's selection sees them with the weights there are.

    It ranks over the whole step. Without a selection every valid token is kept. The teachers that
    the selection asks are loaded.
    """
    selection, rows = run.recipe.selection, _rows_of(run, step)
    if selection is not None:
        load_teacher(run, selection)
        if needs_teacher(selection) and run.teacher is not None:
            load_teacher(run, run.teacher)
    with torch.no_grad():
        tokens = tokens_of(run, _readings(run, rows), step, alone)
        everything = torch.ones(len(tokens.labels), dtype=torch.bool)
        keep = everything if selection is None else keep_of(selection, tokens)
        return _by_row(rows, tokens, keep)


def _rows_of(run: Run, step: int) -> list[Row]:
    return training_rows(run).step(step)


def _readings(run: Run, rows: Sequence[Row]) -> list[Reading]:
    collate = Collate(run.laid("train").split, run.vocabulary, run.device)
    size = run.micro_batch
    places = [range(len(rows))[at : at + size] for at in range(0, len(rows), size)]
    return [Reading(collate([rows[n] for n in some]), some) for some in places]


def _by_row(rows: Sequence[Row], tokens: Tokens, keep: Tensor) -> list[ChosenRow]:
    """Flat values [n] back to where their tokens stand: after the position that predicts them."""
    at = (tokens.row.cpu().numpy(), tokens.position.cpu().numpy() + 1)
    shape = (len(rows), max(len(row["input_ids"]) for row in rows) + 1)
    nothing = torch.full_like(tokens.student_nll(), torch.nan)
    scores = tokens.ranked.scores if tokens.ranked is not None else nothing
    found = {"kept": keep, "nll": tokens.student_nll(), "score": scores}
    laid = {"valid": np.zeros(shape, bool), "kept": np.zeros(shape, bool)}
    laid |= {"nll": np.full(shape, np.nan), "score": np.full(shape, np.nan)}
    laid["valid"][at] = True
    for name, values in found.items():
        laid[name][at] = values.cpu().numpy()
    return [
        ChosenRow(
            input_ids=np.asarray(row["input_ids"]),
            document=np.asarray(row["document"]),
            **{name: array[n, : len(row["input_ids"])] for name, array in laid.items()},
        )
        for n, row in enumerate(rows)
    ]
