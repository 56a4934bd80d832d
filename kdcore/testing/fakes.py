"""Small fakes of the parts of a run: a model, a tokenizer, a teacher, a batch and its tokens.

All are made on the CPU, from seeds, without network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdcore.api.component import component
from kdcore.api.loss import Loss, Term
from kdcore.api.teacher import Teacher
from kdcore.data.batch import Batch, LogitsFn, Split

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kdcore.api.tokens import Tokens


def tiny_llama(vocabulary: int = 64, *, hidden: int = 32, seed: int = 0) -> PreTrainedModel:
    """A fresh two-layer Llama in evaluation mode. Leaves the global random state unchanged."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = LlamaForCausalLM(config)
    model.train(False)
    return model


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level tokenizer with 257 ids: one per byte, and an EOS token that also pads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    letters = [end, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner, eos_token=end, pad_token=end
    )
    return tokenizer


def make_batch(rows: Sequence[Sequence[int]], vocabulary: int = 64) -> Batch:
    """A batch from rows of ids: one document per row, padded on the right, labels shifted."""
    import numpy as np

    from kdcore.data.collate import Collate

    split = Split("train", "testing", np.array([len(row) for row in rows]))
    packed = [
        {"input_ids": row, "document": [n] * len(row), "offset": range(len(row))}
        for n, row in enumerate(rows)
    ]
    return Collate(split, vocabulary, torch.device("cpu"))(packed)


@component
class TableTeacher(Teacher):
    """A bigram teacher: its logits are the current id's row of a random table."""

    name = "table"
    vocabulary: int = 64
    seed: int = 1

    def table(self) -> Tensor:
        """The logits by current id [vocabulary, vocabulary]."""
        generator = torch.Generator().manual_seed(self.seed)
        return 2 * torch.randn(self.vocabulary, self.vocabulary, generator=generator)

    def read(self, batch: Batch) -> LogitsFn:
        """The table's rows of the current ids."""
        ids, table = batch.input_ids.flatten(), self.table()
        return lambda positions: table[ids[positions]]


def make_tokens(
    batch: Batch, teacher: Teacher | None = None, *, step: int = 1, loss: Loss | None = None
) -> Tokens:
    """A batch's valid tokens as a selection sees them; the student is `tiny_llama`.

    With `loss`, as its `prepare` sees them: its term sees every token.
    """
    from kdcore.distributed import alone
    from kdcore.models.causal_lm import LanguageModel
    from kdcore.objective.objective import TokenMask
    from kdcore.objective.readings import MicroBatch
    from kdcore.objective.step_tokens import Chosen, ScoredBatch, StepTokens

    student = LanguageModel(tiny_llama(batch.vocabulary))
    with torch.no_grad():
        parts = [ScoredBatch(MicroBatch(batch, range(len(batch.input_ids))), student.states(batch))]
    tokens = StepTokens(parts, student, teacher, step=step, seed=0, gather=alone)
    if loss is not None:
        count = torch.full((), float(len(batch.valid)))
        term = Term(loss.name, loss.name, loss, 1.0, "kept")
        tokens.chosen = Chosen([term], TokenMask(None, count, count, count))
    return tokens
