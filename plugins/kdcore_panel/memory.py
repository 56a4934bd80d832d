"""Memory in use, for the panel."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def memory_in_use(device: torch.device) -> float:
    """Bytes that this process holds on the device, on a CPU its resident set. Never waits."""
    if device.type == "cuda":
        import torch

        return float(torch.cuda.memory_reserved(device))
    import psutil  # type: ignore[import-untyped]

    return float(psutil.Process().memory_info().rss)
