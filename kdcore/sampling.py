"""Rows of a recipe's data as its students will see them, drawn at random: to be looked at.

The tokenizer is made and the rows are laid as in a run, in a folder that goes away. Unlike a plan
this may download what is not here yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch

from kdcore.batch import Row
from kdcore.batches import NOT_TRAINED, Collate, drawn
from kdcore.fingerprints import as_typed, of_tokenizer
from kdcore.folders import FINAL
from kdcore.hub import load_tokenizer
from kdcore.run import Run
from kdcore.stages import wanted_stages
from kdcore.streams import Stream
from kdcore.tokenizing import keep_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kdcore.recipe import Recipe
    from kdcore.rows import LaidRows


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


def sample_rows(
    recipe: Recipe, *, stage: str | None = None, split: str = "train", count: int = 3
) -> Iterator[RowSample]:
    """`count` rows of a stage, or of each stage that sees other rows than those before it.

    They are drawn by the stage's seed, in their order in the split. Of data that is fresh each
    epoch they are the first epoch's, and of a stream those of its first window.
    """
    with TemporaryDirectory(prefix="kdcore-rows-") as folder:
        opened = _opened(recipe, Path(folder), stage)
        alike: dict[tuple[object, ...], list[Run]] = {}
        for run in opened:
            if stage in (None, run.recipe.name):
                alike.setdefault(_key(run), []).append(run)
        for runs in alike.values():
            yield _sample(runs[0], [run.recipe.run_name for run in runs], split, count)


def _opened(recipe: Recipe, place: Path, only: str | None) -> list[Run]:
    """Each stage with its tokenizer, in order; a tokenizer is all that stages leave behind here."""
    folders = {name: place / f"@{name}" for name in wanted_stages(recipe, only)}
    finals = {name: folder / FINAL for name, folder in folders.items()}
    runs: list[Run] = []
    for name, folder in folders.items():
        built = recipe.build(name, {of: final for of, final in finals.items() if of != name})
        run = Run(recipe=built, folder=folder, device=torch.device("cpu"))
        folder.mkdir()
        run.tokenizer = load_tokenizer(str(keep_tokenizer(run, [one.folder for one in runs])))
        run.tokenizer.save_pretrained(finals[name])
        runs.append(run)
    return runs


def _key(run: Run) -> tuple[object, ...]:
    return as_typed(run.data), run.seed, of_tokenizer(run.tokenizer)


def _sample(run: Run, names: Sequence[str], split: str, count: int) -> RowSample:
    rows = run.laid(split)
    if isinstance(rows, Stream):
        rows = rows.first_window()
    return RowSample(
        stages=names,
        data=as_typed(run.data),
        split=split,
        block=run.data.block,
        tokenizer=run.tokenizer,
        rows=[_row(rows, int(index)) for index in drawn(len(rows), count, run.seed)],
        rows_in_all=len(rows),
        documents=len(rows.split.lengths),
        tokens=int(rows.lengths.sum()),
        cut=rows.cut,
        dropped=rows.dropped,
    )


def _row(rows: LaidRows, index: int) -> SampledRow:
    row = rows[index]
    return SampledRow(
        index=index,
        input_ids=np.asarray(row["input_ids"]),
        document=np.asarray(row["document"]),
        offset=np.asarray(row["offset"]),
        valid=_valid(rows, row),
    )


def _valid(rows: LaidRows, row: Row) -> np.ndarray:
    """Which tokens a batch would train, at their own places."""
    largest = max(int(np.max(row[key])) for key in ("input_ids", "labels") if key in row)
    batch = Collate(rows.split, largest + 1, torch.device("cpu"))([row])
    labels = batch.labels.numpy()
    return np.concatenate([[False], labels[:-1] != NOT_TRAINED])
