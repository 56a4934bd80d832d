"""Micro-batch and chunk sizes, and recovery from running out of memory."""

from __future__ import annotations

import gc
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from kdcore.distributed import announce, was_announced
from kdcore.errors import KdcoreError, RunError, StartAgain, is_out_of_memory
from kdcore.files import write_whole
from kdcore.models.head import chunk_size
from kdcore.objective.chunked_loss import Values
from kdcore.objective.compiled_losses import (
    PerToken,
    compiled_per_token_of,
    compiled_values_of,
)
from kdcore.objective.losses import values_of
from kdcore.rng import RandomState

if TYPE_CHECKING:
    from kdcore.api.loss import Loss, Term
    from kdcore.data.batch import Row
    from kdcore.training.run_state import RunState
    from kdcore.training.step import TrainStep

_log = logging.getLogger("kdcore")


_WORTH = 1e9  # logits of a run: on a CPU compiling takes 14 s and saves 14 ns per logit


def chunk_of(run: RunState) -> int:
    """Tokens per chunk, after the models are loaded; at most those of a process in a step."""
    options = run.recipe.train
    if options.chunk != "auto":
        return options.chunk
    most = math.ceil(options.drawn / run.processes) * run.data.block
    return min(most, chunk_size(run.vocabulary, run.device, _free(run.device)))


def values_for(run: RunState) -> Callable[[Sequence[Term]], Values]:
    """Builds the function for a set of terms, once per set."""
    compiling = _compiles(run)

    @lru_cache
    def values_of_terms(labels: tuple[str, ...], losses: tuple[object, ...]) -> Values:
        if compiling:
            return compiled_values_of(losses, run.chunk)  # type: ignore[arg-type]
        return values_of(losses)  # type: ignore[arg-type]

    def values(terms: Sequence[Term]) -> Values:
        return values_of_terms(tuple(t.label for t in terms), tuple(t.loss for t in terms))

    return values


def per_token_for(run: RunState) -> Callable[[Sequence[Loss]], PerToken] | None:
    """Builds the compiled values of evaluations, once per set of losses; None: not compiled."""
    if not _compiles(run):
        return None

    @lru_cache
    def compiled(losses: tuple[Loss, ...]) -> PerToken:
        return compiled_per_token_of(losses, run.chunk)

    return lambda losses: compiled(tuple(losses))


def _compiles(run: RunState) -> bool:
    choice = run.recipe.train.compile
    if choice != "auto":
        return choice
    if run.device.type == "cuda":
        return find_spec("triton") is not None
    return _has_compiler() and _logits(run) > _WORTH


def _logits(run: RunState) -> float:
    lengths = run.laid("train").lengths
    # The length of a stream is unknown.
    tokens_per_row = float(lengths.sum()) / run.drawn_in_epoch() if len(lengths) else run.data.block
    return tokens_per_row * run.batch * run.steps * run.vocabulary


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in ("g++", "clang++"))


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return min(torch.cuda.mem_get_info(device)[0], _usable(device))
    import psutil  # type: ignore[import-untyped]

    return int(psutil.virtual_memory().available)


def _usable(device: torch.device) -> int:
    """The bytes of a GPU that this process may take, which a program may have limited."""
    share = torch.cuda.get_per_process_memory_fraction(device)
    return int(share * torch.cuda.get_device_properties(device).total_memory)


_KEPT = "micro_batch.json"  # in the run folder, where several processes found one
MARGIN = 0.1  # share of GPU memory kept free: near the limit, the allocator keeps retrying
_CPU_TOKENS = 4096  # larger micro-batches were no faster on two cores and need more memory


def cpu_default(largest: int, block: int) -> int:
    """The default on a CPU: by the row length alone, so that it is the same on every machine."""
    return max(1, min(largest, _CPU_TOKENS // block))


def probe(largest: int, attempt: Callable[[int], None]) -> int:
    """The largest of `largest`, half of it, a quarter, ... for which `attempt` has enough memory.

    Raises the error of `attempt` if a single row does not fit.
    """
    rows = largest
    while True:
        try:
            attempt(rows)
        except RuntimeError as error:
            if rows == 1 or not is_out_of_memory(error):
                raise
            rows = (rows + 1) // 2
        else:
            return rows
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def halve(run: RunState) -> int:
    """Half the run's micro-batch, where that does not change the objective; 0 if there is none."""
    if run.recipe.selection is not None and run.recipe.scope == "micro_batch":
        raise RunError(
            f"the device has too little memory for train.micro_batch = {run.micro_batch}, and "
            '[selection] scope = "micro_batch" makes its size part of the experiment, so it is '
            "not reduced automatically. train.checkpointing = true or a smaller train.chunk needs "
            "less"
        )
    return 0 if run.micro_batch == 1 else (run.micro_batch + 1) // 2


def micro_batch_state(run: RunState) -> dict[str, object]:
    """The micro-batch found, and the option it was found for, to detect a changed option."""
    return {"micro_batch": run.micro_batch, "micro_batch_asked": run.recipe.train.micro_batch}


def keep_micro_batch(run: RunState, rows: int) -> None:
    """Save it for all processes, for when they restart."""
    state = {**micro_batch_state(run), "micro_batch": rows}
    write_whole(run.folder / _KEPT, json.dumps(state) + "\n")


def kept_micro_batch(run: RunState, checkpoint: Mapping[str, Any]) -> int:
    """The micro-batch found earlier in this run, unless the option has changed since."""
    path = run.folder / _KEPT
    states = [checkpoint, json.loads(path.read_text()) if path.exists() else {}]
    asked = run.recipe.train.micro_batch
    found = [
        int(state["micro_batch"])
        for state in states
        if "micro_batch" in state and state.get("micro_batch_asked", asked) == asked
    ]
    return min(found, default=run.micro_batch)


_Result = TypeVar("_Result")


class OomRetry:
    """Retries work with half the micro-batch after running out of memory.

    With several processes, the others are waiting inside the step: all of them exit, the first one
    with a checkpoint of the step before, and restart.
    """

    def __init__(self, step: TrainStep, save_alone: Callable[[], None]) -> None:
        self._step, self._run = step, step.run
        self._save_alone = save_alone

    def run(self, before: RandomState, work: Callable[[], _Result]) -> _Result:
        """The result of `work`, which must have no side effects until it returns."""
        while True:
            try:
                return work()
            except (RuntimeError, KdcoreError) as error:
                if is_out_of_memory(error):
                    said = str(error).splitlines()[0]
                elif self._is_reported():  # a plugin may be blamed for a lost process
                    said = "in another process"
                else:
                    raise
            # Outside the `except` block, where the error and all tensors it refers to have been
            # freed.
            self._step.optimizer.zero_grad(set_to_none=True)
            before.restore()
            self._make_room(said)

    def _is_reported(self) -> bool:
        """Whether another process ran out of memory and reported it before it exited."""
        run = self._run
        if run.processes == 1:
            return False
        return kept_micro_batch(run, {}) < run.micro_batch or was_announced(self._sign())

    def _sign(self) -> str:
        return f"{self._run.recipe.run_name} is out of memory after {self._run.step}"

    def _make_room(self, said: str) -> None:
        run = self._run
        smaller = halve(run)
        if not smaller:
            raise torch.OutOfMemoryError(said)
        _log.warning(
            "out of memory after step %d: train.micro_batch is now %d instead of %d (%s)",
            *(run.step, smaller, run.micro_batch, said),
        )
        if run.processes > 1:
            self._end(smaller)
        run.micro_batch = smaller
        self._step.prefetcher.clear()
        if run.language_model.replayed is not None:
            run.language_model.replayed.forget()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _end(self, smaller: int) -> None:
        run = self._run
        keep_micro_batch(run, smaller)
        announce(self._sign())  # to processes that do not see this disk
        self._save_alone()
        raise StartAgain(
            f"a process ran out of memory after step {run.step}; with the same command all of them "
            f"start again, with train.micro_batch = {smaller}"
        )


def micro_batch_of(step: TrainStep) -> int:
    """Rows per forward pass: as configured, by the row length, or as many as fit."""
    run, options = step.run, step.run.recipe.train
    largest = max(1, math.ceil(options.drawn / run.processes))
    if options.micro_batch != "auto":
        return min(largest, options.micro_batch)
    # Sharded models run on all processes together: one of them cannot try what fits.
    if run.device.type != "cuda" or run.shares_calls:
        return cpu_default(largest, run.recipe.data.block)
    found = probe(largest, lambda rows: _attempt(step, rows))
    return -int(step.gather(torch.tensor([-found], device=run.device))[0].max())


def _attempt(step: TrainStep, rows: int) -> None:
    """Forward and backward of the longest rows, with memory for the optimizer and a margin."""
    run = step.run
    trained = sum(p.numel() for p in step.objective.parameters() if p.requires_grad)
    moments = torch.empty(2 * trained, device=run.device)
    margin = torch.empty(int(MARGIN * _usable(run.device)), dtype=torch.uint8, device=run.device)
    longest = _longest(step, rows)
    step.rehearse(longest or _dummy_rows(run.recipe.data.block, rows), made_up=not longest)
    del moments, margin


def _longest(step: TrainStep, count: int) -> list[Row]:
    """The longest training rows; none where they are streamed or written while training.

    A teacher reads what it will read: one may store it, or go by columns or texts.
    """
    rows = step.run.laid("train")
    if step.rollouts is not None or not len(rows.lengths):
        return []
    order = np.argsort(-np.asarray(rows.lengths), kind="stable")
    return rows.some(np.resize(order, count).tolist())


def _dummy_rows(block: int, count: int) -> list[Row]:
    """Full rows of any ids."""
    ids = list(range(block))
    row = {"input_ids": [0] * block, "document": [0] * block, "offset": ids, "position": ids}
    return [row] * count
