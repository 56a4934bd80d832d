"""The optimizer that a recipe names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

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
    return made(
        [group for group in groups if group["params"]],
        lr=options.lr,  # type: ignore[call-arg]
        **_accepted(made, options),
    )


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


def _accepted(made: type[torch.optim.Optimizer], options: TrainOptions) -> dict[str, Any]:
    """The options that this optimizer has; that it lacks one which was changed is an error."""
    from inspect import signature

    defaults = {name: one.default for name, one in signature(made).parameters.items()}
    arguments = {"betas": tuple(options.betas), "eps": options.eps, "fused": True}
    known = {
        key: value
        for key, value in arguments.items()
        # Adafactor's eps is two numbers, and another thing.
        if key in defaults and isinstance(defaults[key], type(value) | None)
    }
    for key, usual in (("betas", (0.9, 0.999)), ("eps", 1e-8)):
        if key not in known and arguments[key] != usual:
            raise UsageError(f"train.{key}: the optimizer {made.__name__} has no such option")
    return known
