"""Where in the text the tokens of a batch stand."""

from __future__ import annotations

import numpy as np
import torch

from kdcore import Batch


def places(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Document and offset of the tokens that the batch's valid positions predict [valid]."""
    # The predicted token is the next one in the row.
    both = torch.stack([batch.document.flatten(), batch.offset.flatten()])
    document, offset = both[:, batch.valid + 1].cpu().numpy()
    return document, offset
