"""What writing takes: a key-value cache, and the scores of a group's next tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kdcore.models.loading import HALF, precision_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from kdcore.api.contracts import Stage

_COPIES = 4  # of a group's scores in float64, while tokens are drawn


def cache_bytes(config: PretrainedConfig, rows: int, time: int, element: int) -> int:
    """Keys and values of so many rows, each of `time` tokens, in all layers."""
    text = config.get_text_config()
    heads: int = text.num_attention_heads
    each = getattr(text, "head_dim", None) or text.hidden_size // heads
    kept = getattr(text, "num_key_value_heads", None) or heads
    return int(2 * text.num_hidden_layers * rows * time * kept * each * element)


def writing_bytes(
    stage: Stage, config: PretrainedConfig, vocabulary: int, device: torch.device
) -> tuple[int, int]:
    """Of one group at its fullest: the cache, and the scores of its next tokens; 0 without."""
    if stage.rollout is None:
        return 0, 0
    block = stage.data.block
    group = min(stage.writing.group(block), stage.train.drawn * stage.writing.every)
    half = HALF.get(precision_of(stage.train.precision, device))
    element = 2 if half is not None else 4
    return cache_bytes(config, group, block, element), _COPIES * 8 * group * vocabulary
