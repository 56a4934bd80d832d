"""How the student lies on the processes: whole on each of them, or divided between them.

What a training step, a checkpoint and the end of a run do differently for a sharded student is
here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdcore.sharding import wrapping

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel


class Layout:
    """Each process has the whole student: DDP, or a single process."""

    sharded = False

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    def place(self) -> torch.device:
        """Where the student is loaded."""
        device: torch.device = self._accelerator.device
        return device

    def lay(self, model: PreTrainedModel, precision: torch.dtype | None) -> None:
        """Divide the weights of the new student."""

    def prepare(
        self, objective: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The objective as it is called in training, and the optimizer."""
        wrapped, made = self._accelerator.prepare(objective, optimizer)
        return wrapped, made

    def accumulating(self, wrapped: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """The context of a micro-batch: gradients are reduced over processes in the last one."""
        return nullcontext() if last else self._accelerator.no_sync(wrapped)

    def reduce(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients of parameters outside the student, which DDP has done."""

    def unscale(
        self,
        scaler: torch.amp.GradScaler,
        optimizer: torch.optim.Optimizer,
        others: Sequence[nn.Parameter],
    ) -> None:
        """Divide all gradients by the scaler's scale. `others` are those outside the student."""
        scaler.unscale_(optimizer)

    def rest(self) -> None:
        """Before weights are read or changed: nothing of them is gathered."""

    def whole(self, model: PreTrainedModel, *, keep: bool) -> PreTrainedModel | None:
        """The ordinary model to save; None on processes that are not to keep it."""
        return model


class Sharded(Layout):
    """Each process has its part of every weight, of its gradient and of the optimizer's state."""

    sharded = True

    def place(self) -> torch.device:
        """The host: no process needs room for all weights on its device."""
        return torch.device("cpu")

    def lay(self, model: PreTrainedModel, precision: torch.dtype | None) -> None:
        """Divide the weights of the new student; keep what it was like."""
        self._model = model
        wrapping.keep_blank(model)
        wrapping.shard(model, self._accelerator.device, precision)

    def prepare(
        self, objective: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """FSDP reduces the gradients, so DDP wraps nothing."""
        made: torch.optim.Optimizer = self._accelerator.prepare(optimizer)
        return objective, made

    def accumulating(self, wrapped: nn.Module, *, last: bool) -> AbstractContextManager[object]:
        """Layers are reduced in each micro-batch, or each process would hold all gradients.

        The root's group, with the head, stays gathered until the last one, and is reduced there.
        """
        self._model.set_requires_gradient_sync(last, recurse=False)  # type: ignore[operator]
        self._model.set_reshard_after_backward(last, recurse=False)  # type: ignore[operator]
        return nullcontext()

    def reduce(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients of parameters that are whole on each process."""
        for parameter in parameters:
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= torch.distributed.get_world_size()

    def unscale(
        self,
        scaler: torch.amp.GradScaler,
        optimizer: torch.optim.Optimizer,
        others: Sequence[nn.Parameter],
    ) -> None:
        """The scaler takes sharded gradients and whole ones only apart.

        It reduces over processes what it finds in the sharded ones: where one of the whole ones
        is not finite, a sharded one is made so.
        """
        apart = {each: each.grad for each in others if each.grad is not None}
        if apart:
            scale = scaler.scale(torch.ones((), device=self._accelerator.device))
            finite = torch.stack([each.isfinite().all() for each in apart.values()]).all()
            first = next(p.grad for p in self._model.parameters() if p.grad is not None)
            wrapping.local(first).mul_(torch.where(finite, 1.0, torch.nan))
        for each in apart:
            each.grad = None
        scaler.unscale_(optimizer)
        for each, gradient in apart.items():
            each.grad = gradient / scale

    def rest(self) -> None:
        """Drop the root's gathered weights: they would not see changes of its parts."""
        wrapping.rest(self._model)

    def whole(self, model: PreTrainedModel, *, keep: bool) -> PreTrainedModel | None:
        """The ordinary model on the CPU. Weights are gathered one by one, on all processes."""
        self.rest()
        held: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            full = wrapping.whole(parameter.detach())
            if keep:
                held[name] = full.cpu()
            del full
        if not keep:
            return None
        empty = wrapping.blank_of(model)
        _fill(empty, held, dict(model.named_buffers()))
        return empty


def _fill(
    blank: PreTrainedModel, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> None:
    """Give a blank model its weights; tied ones stay tied."""
    made = {
        id(empty): nn.Parameter(weights[name], empty.requires_grad)
        for name, empty in blank.named_parameters()
    }
    for module in blank.modules():
        for key, empty in module._parameters.items():
            if empty is not None:
                module._parameters[key] = made[id(empty)]
    for name, buffer in blank.named_buffers():
        buffer.copy_(buffers[name])


def layout_of(accelerator: Accelerator, shard: str) -> Layout:
    """The layout that `[train] shard` asks for; a single process holds all of it anyway."""
    divides = shard == "full" and accelerator.num_processes > 1
    return (Sharded if divides else Layout)(accelerator)
