"""The learning rate as a function of the step, by transformers' schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from kdcore.errors import UsageError

if TYPE_CHECKING:
    from kdcore.options import TrainOptions


def learning_rate(options: TrainOptions, steps: int) -> Callable[[int], float]:
    """Step (from 1) -> learning rate. It has no state, so a resumed run needs none."""
    warmup = options.warmup
    warmup_steps = round(warmup * steps) if warmup < 1 else int(warmup)
    factor = _factor(options.schedule, warmup_steps, steps)

    def at(step: int) -> float:
        done = step - 1
        share = factor(done)
        if done >= warmup_steps:
            share = options.min_lr + (1 - options.min_lr) * share
        return options.lr * share

    return at


def _factor(name: str, warmup: int, steps: int) -> Callable[[int], float]:
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=max(steps, warmup + 1)
    )
    lambdas = getattr(scheduler, "lr_lambdas", None)
    if not lambdas:
        raise UsageError(f"train.schedule = {name!r} depends on more than the step")
    found: Callable[[int], float] = lambdas[0]
    return found
