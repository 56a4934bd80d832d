"""Sample rows of a recipe, and what a selection keeps of a run's rows.

The tokenizer is made and the rows are laid as in a run, in a folder that goes away. Unlike a plan
this may download what is not here yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kdcore.api.options import describe
from kdcore.data.batch import Row
from kdcore.data.collate import NOT_TRAINED, Collate
from kdcore.data.sampler import random_subset
from kdcore.data.streaming import Stream
from kdcore.distributed import alone
from kdcore.guard import needs_teacher
from kdcore.hashing import tokenizer_hash
from kdcore.objective.readings import MicroBatch
from kdcore.objective.selection import checked_keep, tokens_of
from kdcore.objective.step_tokens import StepTokens
from kdcore.objective.teachers import load_teacher
from kdcore.recipe.recipe import wanted_stages
from kdcore.runs.folder import FINAL
from kdcore.runs.open import OpenRequest, open_stage
from kdcore.training.run_state import RunState, training_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kdcore.data.rows import RowDataset
    from kdcore.recipe.recipe import Recipe


@dataclass(frozen=True, eq=False)
class SampledRow:
    """A row, and which of its tokens are trained; arrays [time]."""

    index: int  # among all rows of the split
    input_ids: np.ndarray
    document: np.ndarray  # the token's document in the split
    offset: np.ndarray  # its index there
    valid: np.ndarray  # bool: it is trained; no prompt, no document's first token


@dataclass(frozen=True, eq=False)
class RowSample:
    """Some rows of a split, and how many there are of everything."""

    stages: Sequence[str]  # the runs that see these very rows, by name
    data: str  # the component as a call, without defaults
    split: str
    block: int
    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[SampledRow]
    rows_in_all: int
    documents: int
    tokens: int
    cut: int  # documents that were longer than a row
    dropped: int  # documents that could train nothing
    # [documents] in tokens, whole or as far as the data keeps them
    lengths: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


def sample_rows(
    recipe: Recipe, *, stage: str | None = None, split: str = "train", count: int = 3
) -> Iterator[RowSample]:
    """`count` rows of a stage, or of each stage that sees other rows than those before it.

    They are drawn by the stage's seed, in their order in the split. Of data that is fresh each
    epoch they are the first epoch's, and of a stream those of its first window.
    """
    with TemporaryDirectory(prefix="kdcore-rows-") as folder:
        opened = opened_stages(recipe, Path(folder), stage)
        alike: dict[tuple[object, ...], list[RunState]] = {}
        for run in opened:
            if stage in (None, run.recipe.name):
                alike.setdefault(_key(run), []).append(run)
        for runs in alike.values():
            yield sample_of(runs[0], [run.recipe.run_name for run in runs], split, count)


def opened_stages(recipe: Recipe, place: Path, only: str | None) -> list[RunState]:
    """Each stage with its tokenizer, in order; a tokenizer is all that stages leave behind here."""
    folders = {name: place / f"@{name}" for name in wanted_stages(recipe, only)}
    finals = {name: folder / FINAL for name, folder in folders.items()}
    runs: list[RunState] = []
    for name, folder in folders.items():
        built = recipe.build(name, {of: final for of, final in finals.items() if of != name})
        folder.mkdir()
        others = [one.folder for one in runs]
        request = OpenRequest(built, folder, trusted=built.trusted, others=others)
        run = open_stage(request, upto="tokenizer")
        run.tokenizer.save_pretrained(finals[name])
        runs.append(run)
    return runs


def _key(run: RunState) -> tuple[object, ...]:
    return describe(run.data), run.seed, tokenizer_hash(run.tokenizer)


def sample_of(run: RunState, names: Sequence[str], split: str, count: int) -> RowSample:
    """`count` rows of a split of one stage; `names` are the runs that see these very rows."""
    rows = run.laid(split)
    if isinstance(rows, Stream):
        rows = rows.first_window()
    return RowSample(
        stages=names,
        data=describe(run.data),
        split=split,
        block=run.data.block,
        tokenizer=run.tokenizer,
        rows=[_row(rows, int(index)) for index in random_subset(len(rows), count, run.seed)],
        rows_in_all=len(rows),
        documents=len(rows.split.lengths),
        tokens=int(rows.lengths.sum()),
        cut=rows.cut,
        dropped=rows.dropped,
        lengths=rows.split.lengths,
    )


def _row(rows: RowDataset, index: int) -> SampledRow:
    row = rows[index]
    return SampledRow(
        index=index,
        input_ids=np.asarray(row["input_ids"]),
        document=np.asarray(row["document"]),
        offset=np.asarray(row["offset"]),
        valid=_valid(rows, row),
    )


def _valid(rows: RowDataset, row: Row) -> np.ndarray:
    """Which tokens a batch would train, at their own places."""
    largest = max(int(np.max(row[key])) for key in ("input_ids", "labels") if key in row)
    batch = Collate(rows.split, largest + 1, torch.device("cpu"))([row])
    labels = batch.labels.numpy()
    return np.concatenate([[False], labels[:-1] != NOT_TRAINED])


@dataclass(frozen=True, eq=False)
class SelectedRow:
    """A row, and what became of each of its tokens; arrays [time]."""

    input_ids: np.ndarray
    document: np.ndarray  # the token's document in the split
    valid: np.ndarray  # bool: it can be trained; no prompt, no document's first token
    kept: np.ndarray  # bool
    nll: np.ndarray  # the student's, in nats; NaN where not valid
    score: np.ndarray  # what the selection ranked by; NaN where there is none


def selected_rows(run: RunState, step: int) -> list[SelectedRow]:
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
        keep = everything if selection is None else checked_keep(selection, tokens)
        return _by_row(rows, tokens, keep)


def _rows_of(run: RunState, step: int) -> list[Row]:
    return training_rows(run).step(step)


def _readings(run: RunState, rows: Sequence[Row]) -> list[MicroBatch]:
    collate = Collate(run.laid("train").split, run.vocabulary, run.device)
    size = run.micro_batch
    places = [range(len(rows))[at : at + size] for at in range(0, len(rows), size)]
    return [MicroBatch(collate([rows[n] for n in some]), some) for some in places]


def _by_row(rows: Sequence[Row], tokens: StepTokens, keep: Tensor) -> list[SelectedRow]:
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
        SelectedRow(
            input_ids=np.asarray(row["input_ids"]),
            document=np.asarray(row["document"]),
            **{name: array[n, : len(row["input_ids"])] for name, array in laid.items()},
        )
        for n, row in enumerate(rows)
    ]
