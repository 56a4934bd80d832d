"""The rows of each step of a run: of rows that are counted, or of a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from kdcore.batches import Order, TrainingRows
from kdcore.errors import RunError
from kdcore.streamed_rows import StreamedRows
from kdcore.streams import Stream

if TYPE_CHECKING:
    from kdcore.run import Run


def training_rows(run: Run) -> TrainingRows | StreamedRows:
    """This process's. A stream needs to be told where to end, and says what it does without."""
    rows, options = run.laid("train"), run.recipe.train
    if not isinstance(rows, Stream):
        order = Order(len(rows), options.batch, run.seed)
        return TrainingRows(lambda e: run.laid("train", e), order, run.process, run.processes)
    if options.steps is None:
        raise RunError(
            f"the data {run.data.name!r} is streamed, and nobody knows how long it is: set "
            "train.steps instead of epochs or tokens"
        )
    if "epoch" in (options.save_every, options.eval_every):
        run.say(
            "the training data is streamed, so nobody knows where an epoch ends: evaluated and "
            "saved at the end, or set train.eval_every and train.save_every to steps"
        )
    return StreamedRows(
        lambda epoch: cast(Stream, run.laid("train", epoch)),
        options.batch,
        run.seed,
        run.process,
        run.processes,
        workers=workers_of(run),
    )


def workers_of(run: Run) -> int:
    """On a CPU, whoever prepares rows takes a core from who trains."""
    wanted = run.recipe.train.workers
    return int(run.device.type == "cuda") if wanted == "auto" else wanted
