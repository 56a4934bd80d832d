"""All tensors of a model, and its module tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdcore.optim import is_spared

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Listed:
    """A parameter and how it is treated."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    trained: bool
    decayed: bool  # with weight decay, if there is any


def tensors_of(model: nn.Module) -> Iterator[Listed]:
    """The parameters in the model's order; shared ones once."""
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        owner, _, last = name.rpartition(".")
        yield Listed(
            name=name,
            shape=tuple(parameter.shape),
            dtype=str(parameter.dtype).removeprefix("torch."),
            trained=parameter.requires_grad,
            decayed=parameter.requires_grad and not is_spared(modules[owner], last, parameter),
        )
