"""A stage as its run would find it, before any weights: to prepare what runs will need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from kdcore.api import Teacher
from kdcore.batches import Collate
from kdcore.errors import UsageError
from kdcore.folders import finished
from kdcore.hub import load_config, load_tokenizer
from kdcore.micro_batch import on_cpu
from kdcore.reopening import finals_of, folder_of
from kdcore.run import Run
from kdcore.setup import make_accelerator, shared_ids
from kdcore.student import config_of
from kdcore.tokenizing import keep_tokenizer
from kdcore.trust import trust

if TYPE_CHECKING:
    from kdcore.batch import Batch, Row
    from kdcore.recipe import Recipe
    from kdcore.rows import LaidRows


@contextmanager
def open_stage(recipe: Recipe, name: str, out: Path) -> Iterator[Run]:
    """A run of a stage with its tokenizer, rows and vocabulary, and neither student nor teacher.

    Stages that it names must be finished in `out`. No run folder is made.
    """
    finals = finals_of(recipe, name, out)
    for need, final in finals.items():
        if not finished(final.parent):
            raise UsageError(
                f"the stage {need!r} is not finished in {out}: kdcore run {recipe.name} "
                f"--stage {need} comes first"
            )
    stage = recipe.build(name, finals)
    trust(stage.trusted)
    known = [folder_of(recipe, name, out), *(final.parent for final in finals.values())]
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".unstarted-", dir=out) as folder:
        accelerator = make_accelerator(stage.train)
        run = Run(recipe=stage, folder=Path(folder), device=accelerator.device)
        run.tokenizer = load_tokenizer(str(keep_tokenizer(run, known)))
        teachers = [one for one in stage.components() if isinstance(one, Teacher)]
        run.vocabulary = shared_ids(run, teachers, _width(run))
        run.micro_batch = on_cpu(stage.train.batch, stage.data.block)
        yield run


def batches_of(run: Run, rows: Sequence[Row]) -> Iterator[Batch]:
    """Rows in order, a micro-batch at a time."""
    laid: LaidRows = rows  # type: ignore[assignment]  # as the run has them
    collate = Collate(laid.split, run.vocabulary, run.device)
    for start in range(0, len(laid), run.micro_batch):
        some = range(start, min(start + run.micro_batch, len(laid)))
        yield collate([laid[n] for n in some])


def _width(run: Run) -> int:
    """The rows of the student's head, by its config."""
    student = run.recipe.student
    if student.model is None:
        config = config_of(student, run.tokenizer)
    else:
        config = load_config(student.model, key="student.model")
    return int(config.get_text_config().vocab_size)
