"""Where the tokens of a batch are in the text."""

from __future__ import annotations

import numpy as np
import torch

from kdcore import Batch


def places(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Document and offset of the tokens that the batch's valid positions predict [valid]."""
    # The predicted token is the next one in the row.
    if batch.on_host is not None:
        predicted = batch.on_host.valid + 1
        return batch.on_host.document[predicted], batch.on_host.offset[predicted]
    both = torch.stack([batch.document.flatten(), batch.offset.flatten()])
    document, offset = both[:, batch.valid + 1].cpu().numpy()
    return document, offset


def sent(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array as a tensor on the device, copied without waiting."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
