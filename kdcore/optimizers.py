"""The optimizer that a recipe names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from kdcore.errors import UsageError

if TYPE_CHECKING:
    from kdcore.options import TrainOptions


def make_optimizer(options: TrainOptions, model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer over what is trained. Weight decay spares biases and norms."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    made = _class(options.optimizer)
    arguments = {"betas": tuple(options.betas), "eps": options.eps, "fused": True}
    known = _accepted(made, arguments)
    return made([g for g in groups if g["params"]], lr=options.lr, **known)  # type: ignore[call-arg]


def _class(name: str) -> type[torch.optim.Optimizer]:
    plain = {kind.__name__.lower(): kind for kind in _all_optimizers()}
    if name.lower() not in plain:
        raise UsageError(
            f"train.optimizer = {name!r} is none of torch's: {', '.join(sorted(plain))}"
        )
    return plain[name.lower()]


def _all_optimizers() -> Iterable[type[torch.optim.Optimizer]]:
    wanted = ("AdamW", "Adam", "SGD", "NAdam", "RAdam", "Adafactor", "Adamax", "RMSprop", "Adagrad")
    return [getattr(torch.optim, name) for name in wanted]


def _accepted(made: type[torch.optim.Optimizer], arguments: dict[str, object]) -> dict[str, object]:
    from inspect import signature

    accepted = signature(made).parameters
    return {key: value for key, value in arguments.items() if key in accepted}
