"""What models do to the logits of their head: scaling and soft caps, with their gradients.

The transform that a model uses is verified against its own logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LogitTransform(Protocol):
    """An elementwise function of the logits."""

    def __call__(self, logits: Tensor) -> Tensor:
        """The model's logits from those of its head."""
        ...

    def back(self, gradient: Tensor, bent: Tensor) -> Tensor:
        """The gradient in the head's logits from that in the model's logits, which are `bent`."""
        ...


@dataclass(frozen=True)
class Scale:
    """Multiplies by a constant: Cohere, Granite, Falcon-H1."""

    by: float

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits times the constant."""
        return logits * self.by

    def back(self, gradient: Tensor, bent: Tensor) -> Tensor:
        """Gradient times the constant."""
        return gradient * self.by


@dataclass(frozen=True)
class SoftCap:
    """Limits logits to plus or minus a cap: Gemma 2 and its descendants."""

    at: float

    def __call__(self, logits: Tensor) -> Tensor:
        """cap * tanh(logits / cap)."""
        return torch.tanh(logits / self.at) * self.at

    def back(self, gradient: Tensor, bent: Tensor) -> Tensor:
        """d/dz [cap * tanh(z / cap)] = 1 - tanh^2(z / cap), with tanh(z / cap) = bent / cap."""
        return gradient * (1 - (bent / self.at).square())


def logit_transforms(model: PreTrainedModel) -> Iterator[LogitTransform]:
    """The transforms that the model's configuration suggests."""
    config: Any = model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    if cap:
        yield SoftCap(float(cap))
    for name, sign in (("logit_scale", 1), ("lm_head_multiplier", 1), ("logits_scaling", -1)):
        factor = getattr(config, name, None)
        if isinstance(factor, int | float) and factor:
            yield Scale(float(factor) ** sign)


_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}  # relative to the largest value
_HALF_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Verified:
    """The model's logits are its head applied to its trunk, followed by `bend` if there is one."""

    bend: LogitTransform | None


def verify(
    model: PreTrainedModel, trunk: Callable[..., Any], head: nn.Linear, ids: Tensor
) -> Verified | None:
    """Find the transform between head and logits; None if the model does something else.

    The head also gets enlarged states: a fresh model's logits are so small that a cap would not
    change them.
    """
    seen: list[Tensor] = []

    def enlarge(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        seen.append(inputs[0])
        return (inputs[0] * (100 / (inputs[0] @ head.weight.t()).abs().max()),)

    states: Tensor = trunk(input_ids=ids, use_cache=False)[0]
    hook = head.register_forward_pre_hook(enlarge)
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    if len(seen) != 1 or not allclose(seen[0], states):
        return None
    made = head(*enlarge(head, (seen[0],)))
    if allclose(logits, made):
        return Verified(None)
    return next(
        (Verified(bend) for bend in logit_transforms(model) if allclose(logits, bend(made))), None
    )


def allclose(a: Tensor, b: Tensor, *, times: int = 1) -> bool:
    """Equal shapes, and values equal up to the rounding of their dtype, or `times` that."""
    if a.shape != b.shape:
        return False
    apart = (a.float() - b.float()).abs().max()
    rounding = _TOLERANCE.get(a.dtype, _HALF_TOLERANCE) * times
    return bool(apart <= rounding * b.float().abs().max())
