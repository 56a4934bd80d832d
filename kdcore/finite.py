"""Keeping a step whose loss or gradient is not finite from changing anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kdcore.gathering import Total
from kdcore.random_state import RandomState

if TYPE_CHECKING:
    from accelerate import Accelerator

Found = tuple[int, RandomState]
"""A step that was not finite, and the generators as they were before it."""


class Finite:
    """Judges each step, and holds back the optimizer where loss or gradient is not finite.

    On a CPU that is known at once, and with a loss scaler too, whose step reads its numbers anyway.
    On a GPU asking would make the host wait for every step. There the optimizer's own kernels leave
    all as it is while `found_inf` is 1 (made for loss scalers, and read on the GPU only), and what
    was found is read with the log. With "stop" every step behind a bad one is held back too, so
    that the state is still the one before it; with "skip" the bad ones only.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        optimizer: torch.optim.Optimizer,
        total: Total,
        *,
        sticks: bool,
    ) -> None:
        self._accelerator, self._total, self._sticks = accelerator, total, sticks
        self._inner: Any = getattr(optimizer, "optimizer", optimizer)
        fused = all(group.get("fused") for group in self._inner.param_groups)
        on_gpu = accelerator.device.type == "cuda"
        self.is_late = on_gpu and accelerator.scaler is None and fused
        self._good = torch.ones((), device=accelerator.device)
        self._judged: list[tuple[int, RandomState, Tensor]] = []

    def judge(
        self, step: int, norm: Tensor, shares: Sequence[Tensor], before: RandomState
    ) -> Tensor:
        """1 where the step may change the weights, else 0; by all processes' numbers."""
        good = torch.cat([*shares, *self._judged_norm(norm)]).isfinite().all().float()
        if (processes := self._accelerator.num_processes) > 1:
            good = (self._total(good) == processes).float()
        self._good = torch.minimum(self._good, good) if self._sticks else good
        if self.is_late:
            self._inner.found_inf = 1 - self._good
        if self.is_late or not good:
            self._judged.append((step, before, good))
        return self._good

    def _judged_norm(self, norm: Tensor) -> list[Tensor]:
        """A scaler looks for its scale by gradients that overflow: that is no fault above 1."""
        scaler = self._accelerator.scaler
        return [] if scaler is not None and scaler.get_scale() >= 1 else [norm.reshape(1)]

    def found(self) -> list[Found]:
        """The bad steps since the last time; on a GPU this waits for them."""
        if not self._judged:
            return []
        flags = torch.stack([good for _, _, good in self._judged]).tolist()
        found = [each[:2] for each, good in zip(self._judged, flags, strict=True) if not good]
        self._judged = []
        return found
