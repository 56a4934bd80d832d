"""Assertions of the checks: an AssertionError begins with the component's name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROUNDING = 1e-4  # tolerance of float32 for values around 1


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal up to rounding."""
    return torch.allclose(one, other, rtol=ROUNDING, atol=ROUNDING)


def require(holds: bool, checked: Any, otherwise: str) -> None:
    """Raise AssertionError with a sentence about the component unless `holds`."""
    if not holds:
        raise AssertionError(f"{checked.name}: {otherwise}")
