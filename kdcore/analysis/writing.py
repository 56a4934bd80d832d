"""The memory of generation: a key-value cache, and the scores of the next tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kdcore.analysis.memory_trace import reading

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from kdcore.api.run import Stage

_COPIES = 4  # float64 copies of the scores while sampling


def cache_bytes(config: PretrainedConfig, rows: int, time: int, element: int) -> int:
    """Keys and values of this many rows of `time` tokens, in all layers."""
    text = config.get_text_config()
    heads: int = text.num_attention_heads
    each = getattr(text, "head_dim", None) or text.hidden_size // heads
    kept = getattr(text, "num_key_value_heads", None) or heads
    return int(2 * text.num_hidden_layers * rows * time * kept * each * element)


@dataclass(frozen=True)
class Writing:
    """The peak bytes of generating one group; 0 without generation."""

    cache: int = 0  # keys and values
    scores: int = 0  # logits of the next tokens
    peak: int = 0  # peak


Models = Sequence[tuple["PreTrainedModel", torch.dtype | None]]
"""Models that generate together, with their autocast dtypes."""


def writing_bytes(stage: Stage, writers: Sequence[Models], vocabulary: int) -> Writing:
    """The largest of several rollouts, which run one after another. Called in `fake_models`."""
    if stage.rollout is None:
        return Writing()
    block = stage.data.block
    group = min(stage.writing.group(block), stage.train.drawn * stage.writing.every)
    prompt = block - stage.rollout.max_new_tokens
    each = [_of(models, group, prompt, block, vocabulary) for models in writers if models]
    return max(each, key=lambda one: one.peak, default=Writing())


def _of(models: Models, group: int, prompt: int, time: int, vocabulary: int) -> Writing:
    cache = sum(
        cache_bytes(model.config, group, time, (precision or model.dtype).itemsize)
        for model, precision in models
    )
    scores = _COPIES * 8 * group * vocabulary
    read = sum(reading(model, group, prompt, precision) for model, precision in models)
    # Each layer's cache is reallocated for every token.
    return Writing(cache, scores, max(read, 2 * cache + scores))
