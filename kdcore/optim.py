"""Optimizers and learning rate schedules by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from kdcore.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


_TORCH = {
    name.lower(): ("torch.optim", name)
    for name in ("AdamW", "Adam", "SGD", "NAdam", "RAdam", "Adafactor", "Adamax", "RMSprop")
} | {"adagrad": ("torch.optim", "Adagrad")}

_AS_TRANSFORMERS_SAYS = {name: _TORCH["adamw"] for name in ("adamw_torch", "adamw_torch_fused")}

_IN_8_BITS = {
    "adam_8bit": "Adam8bit",
    "adamw_8bit": "AdamW8bit",
    "adamw_bnb_8bit": "AdamW8bit",
    "paged_adamw": "PagedAdamW",
    "paged_adamw_32bit": "PagedAdamW",
    "paged_adamw_8bit": "PagedAdamW8bit",
    "lion": "Lion",
    "lion_8bit": "Lion8bit",
    "paged_lion_8bit": "PagedLion8bit",
}

_KNOWN = {
    **_TORCH,
    **_AS_TRANSFORMERS_SAYS,
    **{name: ("bitsandbytes.optim", made) for name, made in _IN_8_BITS.items()},
}
"""Names as in torch and transformers -> module and class."""

_FUSED_IN_PARTS = ("Adam", "AdamW")

_USUAL = {"betas": (0.9, 0.999), "eps": 1e-8}


def make_optimizer(
    name: str,
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    sharded: bool = False,
) -> torch.optim.Optimizer:
    """An optimizer over the trained parameters. No weight decay where `is_spared`.

    `sharded`: the parameters are. Then torch has fused kernels of Adam and AdamW only.
    """
    made = _class(name)
    options = {"lr": lr, **_accepted(made, tuple(betas), eps)}
    if sharded and "fused" in options and made.__name__ not in _FUSED_IN_PARTS:
        options["fused"] = False
    try:
        return made(_groups(model, weight_decay), **options)
    except RuntimeError:
        if "fused" not in options:
            raise
        # Before torch 2.12, Adagrad is fused on a CPU only.
        return made(_groups(model, weight_decay), **{**options, "fused": False})


def _groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Decayed parameters, then spared ones; one group if both are treated alike."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for owner, name, parameter in _trained(model):
        (others if is_spared(owner, name, parameter) else matrices).append(parameter)
    if not decay:
        return [{"params": matrices + others, "weight_decay": 0.0}]
    groups = [
        {"params": matrices, "weight_decay": decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _trained(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Each trained parameter once, in the model's order, with its module."""
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        owner, _, last = name.rpartition(".")
        if parameter.requires_grad:
            yield modules[owner], last, parameter


_SPARED = re.compile(
    r"(.*_)?bias(_.*)?"  # including those of experts [experts, n] and heads [heads, n]
    r"|(.*_)?(norm|scale|gamma|beta)"
    r"|A_log|D|dt_.*bias|sinks|(.*_)?lambda"  # state space models; attention sinks
    r"|time_(mix|decay|first|faaaa|maa).*"  # RWKV
)
"""Names of parameters that are not matrices, whatever their shape."""


def is_spared(owner: nn.Module, name: str, parameter: Tensor) -> bool:
    """Whether a module's parameter is exempt from weight decay.

    Norms and biases are recognised by module and name: Cohere's norms of queries and keys are
    [heads, n], gpt-oss's biases of experts [experts, n]. State space models mark their own.
    """
    if getattr(parameter, "_no_weight_decay", False) or "norm" in type(owner).__name__.lower():
        return True
    is_vector = sum(length > 1 for length in parameter.shape) <= 1 and parameter.ndim != 2
    return is_vector or _SPARED.fullmatch(name) is not None


def optimizer_error(name: str) -> str | None:
    """Why an optimizer is not available, and what to do; None if it is."""
    home, _ = _KNOWN.get(name.lower(), ("", ""))
    if not home:
        near = (
            did_you_mean(name.lower(), list(_KNOWN)) or f"; there are {', '.join(sorted(_KNOWN))}"
        )
        return f"there is no optimizer {name!r}{near}"
    library = home.partition(".")[0]
    if find_spec(library) is None:
        return f'the optimizer {name!r} needs {library}: pip install "kdcore[gpu]"'
    return None


def sharding_error(name: str) -> str | None:
    """Why an optimizer cannot train a sharded student; None if it can."""
    home, made = _KNOWN.get(name.lower(), ("", ""))
    if home.startswith("bitsandbytes"):
        return f"{name!r} of bitsandbytes works on whole weights"
    return f"{name!r} needs whole rows and columns" if made == "Adafactor" else None


def _class(name: str) -> type[torch.optim.Optimizer]:
    if problem := optimizer_error(name):
        raise UsageError(f"train.optimizer: {problem}")
    home, named = _KNOWN[name.lower()]
    made: type[torch.optim.Optimizer] = getattr(import_module(home), named)
    return made


def _accepted(
    made: type[torch.optim.Optimizer], betas: tuple[float, ...], eps: float
) -> dict[str, Any]:
    """The options that this optimizer takes; a changed option that it lacks is an error."""
    from inspect import signature

    defaults = {name: one.default for name, one in signature(made).parameters.items()}
    arguments = {"betas": betas, "eps": eps, "fused": True}
    known = {
        key: value
        for key, value in arguments.items()
        # Adafactor's eps is a pair with another meaning.
        if key in defaults and isinstance(defaults[key], type(value) | None)
    }
    for key, usual in _USUAL.items():
        if key not in known and arguments[key] != usual:
            raise UsageError(f"train.{key}: the optimizer {made.__name__} has no such option")
    if known.get("betas") == _USUAL["betas"]:
        del known["betas"]  # unset options keep the optimizer's own default: Lion has other betas
    return known


def learning_rate(
    lr: float, schedule: str, steps: int, *, warmup: float = 0.0, min_lr: float = 0.0
) -> Callable[[int], float]:
    """Step (from 1) -> learning rate. Stateless, so resuming needs no state."""
    warmup_steps = round(warmup * steps) if warmup < 1 else int(warmup)
    factor = _factor(schedule, warmup_steps, steps)

    def at(step: int) -> float:
        done = step - 1
        share = factor(done)
        if done >= warmup_steps:
            share = min_lr + (1 - min_lr) * share
        return lr * share

    return at


def _factor(name: str, warmup: int, steps: int) -> Callable[[int], float]:
    import torch
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
