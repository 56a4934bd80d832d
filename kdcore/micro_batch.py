"""How many rows go through the model at once, where the recipe leaves it open."""

from __future__ import annotations

from collections.abc import Callable

import torch

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
