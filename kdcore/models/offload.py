"""Offloaded models: layers stay in CPU memory, and are on the device only while they run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_AT_ONCE = 2  # layers on the device: the current one and the next
_ALIGNED = 256  # alignment in bytes, as in an allocator


def offload_layers(model: PreTrainedModel, device: torch.device) -> None:
    """Leave the layers' weights on the CPU and copy each to the device while it runs.

    Embeddings, head and everything outside the layers stay on the device: the engine computes the
    head's products itself.
    """
    outside = _outside(model)
    _Offloaded(_layers(model), device)
    for tensor in outside:
        tensor.data = tensor.data.to(device)


def bytes_on_device(model: PreTrainedModel) -> int:
    """The most bytes that an offloaded model's weights take on the device."""
    layers = _layers(model)
    largest = max((_bytes(layer.parameters()) for layer in layers), default=0)
    parameters = {id(p) for p in model.parameters()}
    outside = (t for t in _outside(model) if id(t) in parameters)
    return min(_AT_ONCE, len(layers)) * largest + _bytes(outside)


class _Offloaded:
    """Hooks that copy each layer from pinned memory while the previous one runs.

    Two buffers on the device alternate. A buffer is overwritten after the work of its layer is
    done: copies have a stream of their own, which waits for that.
    """

    def __init__(self, layers: nn.ModuleList, device: torch.device) -> None:
        self._tensors = [[*chain(each.parameters(), each.buffers())] for each in layers]
        self._home = [_packed(each, device) for each in self._tensors]
        size = max((len(each) for each in self._home), default=0)
        places = min(_AT_ONCE, len(layers))
        self._places = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(places)]
        self._here: list[int | None] = [None] * places  # the layer in each buffer
        is_gpu = device.type == "cuda"
        self._copies = torch.cuda.Stream(device) if is_gpu else None  # type: ignore[no-untyped-call]
        self._device = device
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(self._arrive, number))
            layer.register_forward_hook(partial(self._leave, number), always_call=True)

    def _arrive(self, number: int, *_: object) -> None:
        self._send(number)
        if self._copies is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._copies)
        _point(self._tensors[number], self._places[number % len(self._places)])
        if number + 1 < len(self._home):
            self._send(number + 1)

    def _leave(self, number: int, *_: object) -> None:
        _point(self._tensors[number], self._home[number])

    def _send(self, number: int) -> None:
        """Start copying a layer, unless it is there."""
        place = number % len(self._places)
        if self._here[place] == number:
            return
        self._here[place], source = number, self._home[number]
        target = self._places[place][: len(source)]
        if self._copies is None:
            target.copy_(source)
            return
        self._copies.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copies):
            target.copy_(source, non_blocking=True)


def _packed(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """The tensors as views of one byte buffer; pinned for a GPU."""
    size = sum(_room(each) for each in tensors)
    memory = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    held = [each.detach() for each in tensors]
    _point(tensors, memory)
    for tensor, old in zip(tensors, held, strict=True):
        tensor.data.copy_(old)
    return memory


def _point(tensors: Iterable[Tensor], memory: Tensor) -> None:
    """Make the tensors views of this buffer, each at its fixed offset."""
    at = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        tensor.data = memory[at : at + size].view(tensor.dtype).view(tensor.shape)
        at += _room(tensor)


def _room(tensor: Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    """The trunk's blocks: the module list with most of the weights."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda each: sum(p.numel() for p in each.parameters()))


def _outside(model: PreTrainedModel) -> list[Tensor]:
    layers = _layers(model)
    inside = {id(tensor) for tensor in chain(layers.parameters(), layers.buffers())}
    return [t for t in chain(model.parameters(), model.buffers()) if id(t) not in inside]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
