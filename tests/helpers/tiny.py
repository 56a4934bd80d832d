"""Models, tokenizers and batches that are small enough to make in a test."""

import json
from dataclasses import field

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from kdcore import Data, Split, component
from kdcore.data.collate import Collate

TEXTS = [
    "Once upon a time there was a small fox named Ruby.",
    "She had a red kite, and she loved to fly it near the river!",
    "“Why are you sad?” asked the naïve owl.  It was 12:30.\n\tThe end. 🦊 東京",
]
CPU = torch.device("cpu")
KINDS = ("llama", "qwen2", "gpt2")


def model(kind="llama", vocabulary=64, seed=0, dtype=torch.float32, **options):
    """A two-layer model with random weights, large enough for its logits to differ."""
    llama = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.2,
    }
    gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.2}
    ids = {"vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
    shape = gpt2 if kind == "gpt2" else llama
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **(shape | ids | options))
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def byte_tokenizer(texts=TEXTS, vocabulary=300, eos="<|end|>"):
    """A byte-level BPE, as GPT-2's and Qwen's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[eos], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=eos)


def llama_tokenizer(texts=TEXTS, vocabulary=400):
    """Pieces with "▁" for spaces and bytes for what is unknown, as Llama-2's."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    ascii_only = [text.encode("ascii", "ignore").decode() for text in texts]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, show_progress=False
    )
    made.train_from_iterator(ascii_only, trainer)
    state = json.loads(made.to_str())
    state["added_tokens"] = state["added_tokens"][:3]  # bytes are ordinary pieces
    made = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def save(folder, kind="llama", tokenizer=None, **options):
    """A folder that `from_pretrained` loads, and the tokenizer that lies in it."""
    tokenizer = tokenizer or byte_tokenizer()
    options.setdefault("vocabulary", len(tokenizer))
    model(kind, **options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def documents(lengths, vocabulary=64, seed=0):
    """Random documents of these lengths."""
    drawn = np.random.default_rng(seed)
    return [drawn.integers(1, vocabulary, length) for length in lengths]


def split_of(some, name="train"):
    """What documents make up."""
    whole = b"".join(document.tobytes() for document in some)
    return Split(name, f"{hash(whole):x}", np.array([len(each) for each in some]))


def batch(some, layout, vocabulary=64, split=None, device=CPU):
    """A batch of packed rows: `layout` lists, for each row, (document, start, end) pieces."""
    rows = [_row(some, pieces) for pieces in layout]
    return Collate(split or split_of(some), vocabulary, device)(rows)


def _row(some, pieces):
    def joined(make):
        return np.concatenate([make(*piece) for piece in pieces])

    return {
        "input_ids": joined(lambda n, start, end: some[n][start:end]),
        "document": joined(lambda n, start, end: np.full(end - start, n)),
        "offset": joined(lambda n, start, end: np.arange(start, end)),
        "position": joined(lambda n, start, end: np.arange(end - start)),
    }


@component
class Lines(Data):
    """Documents that a test gives."""

    name = "tiny-lines"
    lines: list[str] = field(default_factory=lambda: list(TEXTS))

    def texts(self, split):
        return iter(self.lines)
