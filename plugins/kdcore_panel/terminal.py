"""What the panel asks of the machine: memory in use, and who else writes to the terminal."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import torch


def memory_in_use(device: torch.device) -> float:
    """Bytes that this process holds on the device, on a CPU its resident set. Never waits."""
    if device.type == "cuda":
        import torch

        return float(torch.cuda.memory_reserved(device))
    import psutil  # type: ignore[import-untyped]

    return float(psutil.Process().memory_info().rss)


def handlers_of(stream: TextIO) -> list[logging.StreamHandler[Any]]:
    """Every log handler, of whatever library, that writes to the stream."""
    known = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = [
        h for logger in known if isinstance(logger, logging.Logger) for h in logger.handlers
    ]
    streaming = [h for h in handlers if isinstance(h, logging.StreamHandler)]
    # A handler that looks its stream up at each message has none of its own to change.
    return [h for h in streaming if vars(h).get("stream") is stream]
