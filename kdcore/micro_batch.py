"""How many rows go through the model at once: by the recipe, by a formula, by what fits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from kdcore.errors import RunError
from kdcore.folders import write_whole

if TYPE_CHECKING:
    from kdcore.run import Run

_KEPT = "micro_batch.json"  # in the run folder, where several processes found one
_CPU_TOKENS = 4096  # larger micro-batches were no faster on two cores, and take more memory


def on_cpu(largest: int, block: int) -> int:
    """By a formula of the row length, so that it is the same on every machine."""
    return max(1, min(largest, _CPU_TOKENS // block))


def by_probe(largest: int, attempt: Callable[[int], None]) -> int:
    """The largest of `largest`, its half, its quarter, ... that `attempt` has the memory for.

    Raises torch.OutOfMemoryError where a single row does not fit.
    """
    rows = largest
    while True:
        try:
            attempt(rows)
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
            rows = (rows + 1) // 2
        else:
            return rows
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def halved(run: Run) -> int:
    """Half of the run's, where that leaves the experiment as it is; 0 where there is no half."""
    if run.recipe.selection is not None and run.recipe.scope == "micro_batch":
        raise RunError(
            f"the device has too little memory for train.micro_batch = {run.micro_batch}, and "
            '[selection] scope = "micro_batch" makes that a part of the experiment: another one is '
            "another run. train.checkpointing = true or a smaller train.chunk needs less"
        )
    return 0 if run.micro_batch == 1 else (run.micro_batch + 1) // 2


def micro_batch_state(run: Run) -> dict[str, object]:
    """What was found and what was asked for, so that asking for something else is heard."""
    return {"micro_batch": run.micro_batch, "micro_batch_asked": run.recipe.train.micro_batch}


def keep_micro_batch(run: Run, rows: int) -> None:
    """For all processes, when they start again."""
    state = {**micro_batch_state(run), "micro_batch": rows}
    write_whole(run.folder / _KEPT, json.dumps(state) + "\n")


def kept_micro_batch(run: Run, checkpoint: Mapping[str, Any]) -> int:
    """What this run was found to fit in before, unless the recipe asks for something else now."""
    path = run.folder / _KEPT
    states = [checkpoint, json.loads(path.read_text()) if path.exists() else {}]
    asked = run.recipe.train.micro_batch
    found = [
        int(state["micro_batch"])
        for state in states
        if "micro_batch" in state and state.get("micro_batch_asked", asked) == asked
    ]
    return min(found, default=run.micro_batch)
