"""How a run works on chunks: how many tokens each has, and whether losses are compiled for them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from kdcore.compiled import compiled_values_of
from kdcore.head import Values, chunk_size
from kdcore.objective import values_of

if TYPE_CHECKING:
    from kdcore.options import Term
    from kdcore.run import Run

_WORTH = 1e10  # logits of a run: on a CPU compiling takes half a minute, and saves 16 ns of each


def chunk_of(run: Run) -> int:
    """Tokens in a chunk, once the models are loaded; no more than a process has in a step."""
    options = run.recipe.train
    if options.chunk != "auto":
        return options.chunk
    most = math.ceil(options.batch / run.processes) * run.data.block
    return min(most, chunk_size(run.vocabulary, run.device, _free(run.device)))


def values_for(run: Run) -> Callable[[Sequence[Term]], Values]:
    """The way to compute a set of terms, made once for each set."""
    compiling = _compiles(run)

    @lru_cache
    def made(labels: tuple[str, ...], losses: tuple[object, ...]) -> Values:
        if compiling:
            return compiled_values_of(losses, run.chunk)  # type: ignore[arg-type]
        return values_of(losses)  # type: ignore[arg-type]

    def values(terms: Sequence[Term]) -> Values:
        return made(tuple(t.label for t in terms), tuple(t.loss for t in terms))

    return values


def _compiles(run: Run) -> bool:
    wanted = run.recipe.train.compile
    if wanted != "auto":
        return wanted
    if run.device.type == "cuda":
        return find_spec("triton") is not None
    return _has_compiler() and _logits(run) > _WORTH


def _logits(run: Run) -> float:
    lengths = run.laid("train").lengths
    each = float(lengths.mean()) if len(lengths) else run.data.block  # nobody counts a stream's
    return each * run.recipe.train.batch * run.steps * run.vocabulary


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in ("g++", "clang++"))


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil  # type: ignore[import-untyped]

    return int(psutil.virtual_memory().available)
