"""What writing takes: a key-value cache, and the scores of a group's next tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kdcore.analysis.memory_trace import reading

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from kdcore.api.contracts import Stage

_COPIES = 4  # of a group's scores in float64, while tokens are drawn


def cache_bytes(config: PretrainedConfig, rows: int, time: int, element: int) -> int:
    """Keys and values of so many rows, each of `time` tokens, in all layers."""
    text = config.get_text_config()
    heads: int = text.num_attention_heads
    each = getattr(text, "head_dim", None) or text.hidden_size // heads
    kept = getattr(text, "num_key_value_heads", None) or heads
    return int(2 * text.num_hidden_layers * rows * time * kept * each * element)


@dataclass(frozen=True)
class Writing:
    """Bytes of one group of answers at its fullest; 0 where nothing is written."""

    cache: int = 0  # keys and values
    scores: int = 0  # of the next tokens
    peak: int = 0  # the most at any time


Models = Sequence[tuple["PreTrainedModel", torch.dtype | None]]
"""Models that write together, with the type of autocast that they run in."""


def writing_bytes(stage: Stage, writers: Sequence[Models], vocabulary: int) -> Writing:
    """Of the largest of the writers, which write one after the other. Called among `FakeModels`."""
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
    # Each layer's cache is made anew for a token more.
    return Writing(cache, scores, max(read, 2 * cache + scores))
