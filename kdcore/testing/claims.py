"""How a check says what is wrong: an AssertionError that begins with the component's name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROUNDING = 1e-4  # what float32 may be wrong by, of values around 1


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal but for rounding."""
    return torch.allclose(one, other, rtol=ROUNDING, atol=ROUNDING)


def require(holds: bool, checked: Any, otherwise: str) -> None:
    """Raise AssertionError with a sentence about a component unless something holds."""
    if not holds:
        raise AssertionError(f"{checked.name}: {otherwise}")
