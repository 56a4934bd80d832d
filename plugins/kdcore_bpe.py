"""A byte-level BPE tokenizer, trained on the training texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from kdcore import Data, Run, Tokenizer, component, hookimpl, progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_EOS = "<|endoftext|>"
_LEAST = 257  # the bytes and the eos


@component
class Bpe(Tokenizer):
    """Byte-level BPE, trained on the train split only. `<|endoftext|>` ends documents and pads."""

    name = "bpe"
    vocab_size: Annotated[int, Field(ge=_LEAST)] = 8192

    def load(self, run: Run, data: Data) -> PreTrainedTokenizerBase:
        """Train it; the same texts give the same tokenizer."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=[_EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        with progress("training the tokenizer"):
            backend.train_from_iterator(data.texts("train"), trainer)
        return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=backend,
            eos_token=_EOS,
            pad_token=_EOS,
            padding_side="left",  # for generation; the engine pads training rows itself
            clean_up_tokenization_spaces=False,
        )


@hookimpl
def kdcore_tokenizers() -> Sequence[type[Tokenizer]]:
    """The tokenizer `bpe`."""
    return [Bpe]
