"""CUDA graphs of the student's trunk: one launch forward and one backward for rows of one shape.

A small model with few rows waits for the host, which launches thousands of kernels a step. A graph
holds the launches of a pass over whole rows of one shape, and is replayed on other ids. Other rows,
such as packed ones, and everything that needs no gradient run without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdcore.data.batch import Batch
from kdcore.errors import RunError, is_out_of_memory
from kdcore.rng import RandomState

if TYPE_CHECKING:
    from accelerate import Accelerator

    from kdcore.api.train_options import TrainOptions

_MOST = 2  # shapes: full micro-batches, and the rest of a step
_WARM_UP = 3  # passes before a capture, as torch.cuda.make_graphed_callables has it

Forward = Callable[[Batch], Tensor]
"""A trunk: a batch -> its last states [rows * time, H]."""


class TrunkGraphs:
    """The graphs of a trunk, each captured at the first step that has rows of its shape."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = [p for p in parameters if p.requires_grad]
        self._captured: dict[tuple[int, ...], _Captured] = {}

    def states(self, batch: Batch, forward: Forward) -> Tensor | None:
        """The states by a replayed graph; None where none fits."""
        if not (torch.is_grad_enabled() and _is_whole(batch)):
            return None
        shape = tuple(batch.input_ids.shape)
        if shape not in self._captured:
            if len(self._captured) == _MOST:
                return None
            self._captured[shape] = self._capture(batch, forward)
        captured = self._captured[shape]
        found: Tensor = _Replay.apply(captured.anchor, captured, batch)  # type: ignore[no-untyped-call]
        return found

    def forget(self) -> None:
        """Drop all graphs and their memory, which torch's allocator gives to nothing else."""
        self._captured.clear()

    def _capture(self, batch: Batch, forward: Forward) -> _Captured:
        before = RandomState.capture()
        try:
            return _Captured(batch, forward, self._parameters)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            # No step can follow: torch stays on the capture's stream, and its random numbers too.
            first = str(error).strip().partition("\n")[0]
            raise RunError(
                f"train.cuda_graphs = true: this student's trunk cannot be captured ({first}); "
                "leave cuda_graphs out"
            ) from error
        finally:
            before.restore()  # the warm-up draws dropout, and a resumed run captures anew


def _is_whole(batch: Batch) -> bool:
    packing = batch.packing
    return (
        batch.attention_mask is None
        and packing is not None
        and packing.is_whole(len(batch.input_ids))
    )


class _Captured:
    """Graphs of both passes over rows of one shape. Their tensors have fixed addresses."""

    def __init__(self, batch: Batch, forward: Forward, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._ids, self._positions = batch.input_ids.clone(), batch.position_ids.clone()
        fixed = replace(batch, input_ids=self._ids, position_ids=self._positions)
        # What makes autograd call the backward pass.
        self.anchor = torch.zeros((), device=self._ids.device, requires_grad=True)
        with _uncached_autocast(self._ids.device.type):
            self._warm_up(lambda: forward(fixed))
            self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            pool = torch.cuda.graph_pool_handle()
            # Rows are prefetched in another thread meanwhile.
            how: Any = {"pool": pool, "capture_error_mode": "thread_local"}
            with torch.cuda.graph(self._forward, **how):
                states = forward(fixed)
            self._to_states = torch.empty_like(states).detach()
            with torch.cuda.graph(self._backward, **how):
                self._gradients = self._gradients_of(states, self._to_states)
        self._states = states.detach()

    def _warm_up(self, forward: Callable[[], Tensor]) -> None:
        """Libraries make their workspaces on a stream of their own, outside of the graphs."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                states = forward()
                self._gradients_of(states, torch.zeros_like(states))
        torch.cuda.current_stream().wait_stream(stream)

    def _gradients_of(self, states: Tensor, to_states: Tensor) -> Sequence[Tensor | None]:
        return torch.autograd.grad(states, self._parameters, to_states, allow_unused=True)

    def forward(self, batch: Batch) -> Tensor:
        """The states of these rows; the next replay overwrites them."""
        self._ids.copy_(batch.input_ids)
        self._positions.copy_(batch.position_ids)
        self._forward.replay()
        return self._states

    def backward(self, to_states: Tensor) -> None:
        """Add the gradients of the parameters. The graph's own are overwritten by the next."""
        self._to_states.copy_(to_states)
        self._backward.replay()
        each = zip(self._parameters, self._gradients, strict=True)
        found = [(p, gradient) for p, gradient in each if gradient is not None]
        new = [(p, gradient) for p, gradient in found if p.grad is None]
        totals = [(p.grad, gradient) for p, gradient in found]
        old = [(total, gradient) for total, gradient in totals if total is not None]
        if old:
            torch._foreach_add_([total for total, _ in old], [gradient for _, gradient in old])
        if new:
            copies = [torch.empty_like(gradient) for _, gradient in new]
            torch._foreach_copy_(copies, [gradient for _, gradient in new])
            for (parameter, _), copy in zip(new, copies, strict=True):
                parameter.grad = copy


class _Replay(torch.autograd.Function):
    """A captured trunk as one operation."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, captured: _Captured, batch: Batch) -> Tensor:
        """The states [rows * time, H]."""
        ctx.captured = captured
        return captured.forward(batch).detach()

    @staticmethod
    def backward(ctx: Any, to_states: Tensor) -> tuple[None, None, None]:
        """The parameters' gradients are added directly."""
        ctx.captured.backward(to_states)
        return None, None, None


def _uncached_autocast(device: str) -> AbstractContextManager[object]:
    """Autocast as it is, without its cache: weights that were cast before are not in the graph."""
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=False)


def check_graphs(options: TrainOptions, accelerator: Accelerator) -> None:
    """Raise RunError where the trunk's passes cannot be captured."""
    if not options.cuda_graphs:
        return
    why = None
    if accelerator.device.type != "cuda":
        why = f"needs a CUDA device, and this is {accelerator.device.type!r}"
    elif accelerator.num_processes > 1:
        why = "works with one process only"
    elif options.checkpointing:
        why = "does not work with train.checkpointing"
    if why is not None:
        raise RunError(f"train.cuda_graphs = true {why}; leave cuda_graphs out")
