"""What models do to the logits of their head: scaling and soft caps, with their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LogitTransform(Protocol):
    """A function of each logit by itself."""

    def __call__(self, logits: Tensor) -> Tensor:
        """The model's logits from those of its head."""
        ...

    def back(self, gradient: Tensor, bent: Tensor) -> Tensor:
        """The gradient in the head's logits from that in the model's, which are `bent`."""
        ...


@dataclass(frozen=True)
class Scale:
    """Times a constant: Cohere, Granite, Falcon-H1."""

    by: float

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits times the constant."""
        return logits * self.by

    def back(self, gradient: Tensor, bent: Tensor) -> Tensor:
        """Gradient times the constant."""
        return gradient * self.by


@dataclass(frozen=True)
class SoftCap:
    """Never beyond plus or minus a cap: Gemma 2 and its descendants."""

    at: float

    def __call__(self, logits: Tensor) -> Tensor:
        """The cap times tanh(logits / cap)."""
        return torch.tanh(logits / self.at) * self.at

    def back(self, gradient: Tensor, bent: Tensor) -> Tensor:
        """The derivative of tanh is 1 - tanh^2."""
        return gradient * (1 - (bent / self.at).square())


def logit_transforms(model: PreTrainedModel) -> Iterator[LogitTransform]:
    """What the model's configuration says may be done to its logits."""
    config: Any = model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    if cap:
        yield SoftCap(float(cap))
    for name, sign in (("logit_scale", 1), ("lm_head_multiplier", 1), ("logits_scaling", -1)):
        factor = getattr(config, name, None)
        if isinstance(factor, int | float) and factor:
            yield Scale(float(factor) ** sign)
