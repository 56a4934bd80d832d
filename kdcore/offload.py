"""Models that are larger than the device: their layers stay in the CPU's memory."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def offload_layers(model: PreTrainedModel, device: torch.device) -> None:
    """Leave the layers' weights where they are, and move each to the device while it runs.

    Embeddings, head and what else stands outside the layers go onto the device for good: the
    engine makes the head's products itself.
    """
    from accelerate import cpu_offload

    outside = _outside(model)
    for layer in _layers(model):
        cpu_offload(layer, execution_device=device)
    for tensor in outside:
        tensor.data = tensor.data.to(device)


def bytes_on_device(model: PreTrainedModel) -> int:
    """What the device holds of the weights of an offloaded model at the most."""
    largest = max((_bytes(p) for layer in _layers(model) for p in layer.parameters()), default=0)
    parameters = {id(p) for p in model.parameters()}
    return largest + sum(_bytes(t) for t in _outside(model) if id(t) in parameters)


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    """The trunk's blocks: the list of modules that holds most of the weights."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda each: sum(p.numel() for p in each.parameters()))


def _outside(model: PreTrainedModel) -> list[Tensor]:
    layers = _layers(model)
    inside = {id(tensor) for tensor in chain(layers.parameters(), layers.buffers())}
    return [t for t in chain(model.parameters(), model.buffers()) if id(t) not in inside]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
