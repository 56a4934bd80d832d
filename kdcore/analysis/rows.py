"""Sample rows of a recipe, and the tokens that a selection keeps in a run's rows.

Makes the tokenizer and rows as a run does, in a temporary folder. Unlike a plan, this may download
files.
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
    """A row, and which of its tokens are trained on; arrays [time]."""

    index: int  # in all rows of the split
    input_ids: np.ndarray
    document: np.ndarray  # index of each token's document in the split
    offset: np.ndarray  # index of each token in its document
    valid: np.ndarray  # bool: trained on; not prompts or first tokens of documents


@dataclass(frozen=True, eq=False)
class RowSample:
    """Some rows of a split, and totals."""

    stages: Sequence[str]  # names of the runs with exactly these rows
    data: str  # as a call, without defaults
    split: str
    block: int
    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[SampledRow]
    rows_in_all: int
    documents: int
    tokens: int
    cut: int  # documents longer than a row
    dropped: int  # documents without a token to train on
    # [documents] in tokens, complete, or as far as the data keeps them
    lengths: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


def sample_rows(
    recipe: Recipe, *, stage: str | None = None, split: str = "train", count: int = 3
) -> Iterator[RowSample]:
    """`count` rows of a stage, or of each stage with other rows than earlier ones.

    Drawn by the stage's seed, in the order of the split. For data that is fresh each epoch, from
    the first epoch; for a stream, from its first window.
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
    """Each stage with its tokenizer, in order; tokenizers are the only outputs of stages here."""
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
    """`count` rows of a split of one stage; `names` are the runs with exactly these rows."""
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
    """The tokens that a batch would train on, at their own positions."""
    largest = max(int(np.max(row[key])) for key in ("input_ids", "labels") if key in row)
    batch = Collate(rows.split, largest + 1, torch.device("cpu"))([row])
    labels = batch.labels.numpy()
    return np.concatenate([[False], labels[:-1] != NOT_TRAINED])


@dataclass(frozen=True, eq=False)
class SelectedRow:
    """A row, and the state of each of its tokens; arrays [time]."""

    input_ids: np.ndarray
    document: np.ndarray  # index of each token's document in the split
    valid: np.ndarray  # bool: can be trained on; not prompts or first tokens of documents
    kept: np.ndarray  # bool
    nll: np.ndarray  # the student's, in nats; NaN where not valid
    score: np.ndarray  # by which the selection ranked; NaN without one


def selected_rows(run: RunState, step: int) -> list[SelectedRow]:
    """The rows of a training step as the run's selection sees them with the current weights.

    Ranks over the whole step. Without a selection, every valid token is kept. Loads the teachers
    that the selection uses.
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
    """Flat values [n] moved to their tokens: one after the position that predicts them."""
    at = (tokens.row.cpu().numpy(), tokens.position.cpu().numpy() + 1)
    shape = (len(rows), max(len(row["input_ids"]) for row in rows) + 1)
    nothing = torch.full_like(tokens.student_nll(), torch.nan)
    scores = tokens.ranked.scores if tokens.ranked is not None else nothing
    found = {"kept": keep, "nll": tokens.student_nll(), "score": scores}
    arrays = {"valid": np.zeros(shape, bool), "kept": np.zeros(shape, bool)}
    arrays |= {"nll": np.full(shape, np.nan), "score": np.full(shape, np.nan)}
    arrays["valid"][at] = True
    for name, values in found.items():
        arrays[name][at] = values.cpu().numpy()
    return [
        SelectedRow(
            input_ids=np.asarray(row["input_ids"]),
            document=np.asarray(row["document"]),
            **{name: array[n, : len(row["input_ids"])] for name, array in arrays.items()},
        )
        for n, row in enumerate(rows)
    ]
