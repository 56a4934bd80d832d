"""Models, texts and a plugin for recipes drawn at random, made in a folder when they are needed."""

import random
import shutil
from functools import cache
from pathlib import Path

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ"
VOCABULARY = 1 + len(LETTERS)
CORPORA = 24
PLUGIN = "random_plugin.py"
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.25,
}
GROUPED = LLAMA | {"num_key_value_heads": 1, "head_dim": 8}
SHAPES = {
    "llama": GROUPED,
    "qwen2": LLAMA | {"num_key_value_heads": 1},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "initializer_range": 0.25},
    "gemma2": GROUPED
    | {"num_hidden_layers": 2}
    | {"final_logit_softcapping": 3.0, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "mistral": GROUPED | {"sliding_window": 11},
    "gpt_neox": LLAMA,
}
DROPOUT = {
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "gpt_neox": ("hidden_dropout", "attention_dropout"),
}


def lay_out(folder):
    """The texts and the plugin, which recipes name by paths relative to this folder."""
    for number in range(CORPORA):
        for split, documents in (("train", 26), ("validation", 8)):
            path = folder / "texts" / f"{split}-{number}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join(lines(number, split, documents)) + "\n")
    shutil.copy(Path(__file__).with_name(PLUGIN), folder / PLUGIN)


def lines(number, split, documents):
    """Documents of 1 to 30 letters, short ones more often."""
    rng = random.Random(f"{number} {split}")
    lengths = [rng.choice((rng.randint(1, 8), rng.randint(1, 30))) for _ in range(documents)]
    return ["".join(rng.choices(LETTERS, k=length)) for length in lengths]


def config_of(kind, *, dropout=0.0, rows=VOCABULARY, tied=False):
    """What makes a model of this kind, as a recipe or `for_model` takes it."""
    shape = SHAPES[kind] | {"tie_word_embeddings": tied, "vocab_size": rows}
    names = DROPOUT.get(kind, ("attention_dropout",))
    return shape | dict.fromkeys(names, dropout)


def model_folder(kind, *, seed, dropout=0.0, rows=VOCABULARY, tied=False):
    """The name of a folder with such a model and the tokenizer, made where it is missing."""
    name = f"models/{kind}-{seed}-{rows}-{dropout}{'-tied' if tied else ''}"
    if not Path(name).exists():
        made = make(kind, seed, dropout=dropout, rows=rows, tied=tied)
        made.save_pretrained(name)
        tokenizer().save_pretrained(name)
    return name


def make(kind, seed, **options):
    from transformers import AutoConfig, AutoModelForCausalLM

    ids = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **config_of(kind, **options), **ids)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@cache
def tokenizer():
    """One id a letter; 0 ends a text."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    ids = {token: n for n, token in enumerate(["<|end|>", *LETTERS])}
    made = Tokenizer(models.BPE(ids, []))
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


@cache
def ids_of(folder):
    """How many ids its tokenizer knows: transformers gives some models' more than were saved."""
    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(folder))


@cache
def plain(folder):
    """A model of a folder, for whoever only asks it."""
    return loaded(folder)


def loaded(folder):
    """A model of a folder, in the precision of its file."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
