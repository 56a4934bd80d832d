"""The random state of a process: capture and restore every generator that a step may use."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RandomState:
    """The generators of torch, Python and NumPy in this process. Reading them never syncs a GPU."""

    torch: Tensor
    python: tuple[Any, ...]
    numpy: Any
    cuda: Tensor | None

    @classmethod
    def capture(cls) -> RandomState:
        """The current state."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return cls(torch.get_rng_state(), random.getstate(), np.random.get_state(), cuda)

    def restore(self) -> None:
        """Restore this state."""
        torch.set_rng_state(self.torch)
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        if self.cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.cuda)

    def tensors(self) -> dict[str, Tensor]:
        """The state as tensors, for a checkpoint."""
        version, words, gauss = self.python
        _, key, position, has_gauss, numpy_gauss = self.numpy
        pending = [math.nan if gauss is None else gauss, numpy_gauss]  # cached normal numbers
        state = {
            "torch": self.torch,
            "python": torch.tensor([version, *words], dtype=torch.int64),
            "numpy": torch.tensor([*map(int, key), position, has_gauss], dtype=torch.int64),
            "pending": torch.tensor(pending, dtype=torch.float64),
        }
        return state if self.cuda is None else state | {"cuda": self.cuda}

    @classmethod
    def from_tensors(cls, state: Mapping[str, Tensor]) -> RandomState:
        """The inverse of `tensors`."""
        gauss, numpy_gauss = state["pending"].tolist()
        version, *words = state["python"].tolist()
        *key, position, has_gauss = state["numpy"].tolist()
        return cls(
            torch=state["torch"],
            python=(version, tuple(words), None if math.isnan(gauss) else gauss),
            numpy=("MT19937", np.array(key, np.uint32), position, has_gauss, numpy_gauss),
            cuda=state.get("cuda"),
        )
