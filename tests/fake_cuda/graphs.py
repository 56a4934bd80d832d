"""CUDA graphs of the fake device: a capture notes each operation with its tensors, a replay does
them again into the same memory. What would wait for the device in a capture is an error, as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from fake_cuda.counting import tensors_in, why_it_waits


class Graph:
    """Operations, with the tensors that they read and wrote."""

    replays = 0  # of all graphs

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Sequence[Any], Mapping[str, Any], Any]] = []

    def replay(self) -> None:
        """Compute all of it anew, from what the same memory holds now: one launch."""
        Graph.replays += 1
        with _disable_current_modes(), torch.no_grad():
            for func, args, options, found in self.calls:
                made = func(*args, **options)
                for old, new in zip(tensors_in(found), tensors_in(made), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class Capture(TorchDispatchMode):
    """`torch.cuda.graph`."""

    def __init__(self, graph: Graph, pool: object = None, capture_error_mode: str = "") -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Let it be computed, and note it."""
        options = kwargs or {}
        found = func(*args, **options)
        taken, made = tensors_in((args, options)), tensors_in(found)
        if any(each.is_cuda for each in (*taken, *made)):
            if why := why_it_waits(func.overloadpacket, args, options, taken, found):
                raise RuntimeError(f"operation not permitted when stream is capturing: {why}")
            self._graph.calls.append((func, args, options, found))
        return found
