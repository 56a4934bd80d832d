"""Models and rows, small enough to run through every test, and of every kind there is."""

import copy
from functools import cache

import numpy as np
import tiny
import torch
from torch import nn

from kdcore import LanguageModel

VOCABULARY = 37
NOT_TRAINED = -100
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def model(kind="llama", *, seed=0, double=False, vocabulary=VOCABULARY, **options):
    """A model of hidden size 16 in evaluation mode."""
    size = {"n_embd": 16, **NO_DROPOUT} if kind == "gpt2" else {"hidden_size": 16}
    made = tiny.model(kind, vocabulary, seed, **(size | options)).eval()
    return in_double(made) if double else made


def in_double(model):
    """A copy in float64 throughout: Llama's own norms round to float32."""
    made = copy.deepcopy(model).double()
    for module in list(made.modules()):
        for name, child in module.named_children():
            if hasattr(child, "variance_epsilon"):
                plain = nn.RMSNorm(len(child.weight), child.variance_epsilon, dtype=torch.float64)
                plain.weight = child.weight
                setattr(module, name, plain)
    return made


@cache
def proved(model):
    """The model's trunk and head; finding them takes as long as a step."""
    return LanguageModel(model)


def row(*lengths, seed=0, prompt=0, labels=None, document=0, offset=0, vocabulary=VOCABULARY):
    """A row of isolated documents. The first `prompt` tokens of each are not trained."""
    ids = np.random.default_rng([seed, sum(lengths)]).integers(0, vocabulary, sum(lengths))
    position = np.concatenate([np.arange(length) for length in lengths])
    made = {
        "input_ids": ids,
        "document": np.repeat(np.arange(document, document + len(lengths)), lengths),
        "offset": position + offset,
        "position": position,
    }
    if prompt or labels is not None:
        trained = position >= prompt if labels is None else np.array(labels)
        made["labels"] = np.where(trained, ids, NOT_TRAINED)
    return made


def packed_rows():
    """Eight rows of every kind there is: several documents, prompts, nothing to train, a token."""
    return [
        row(5, 1, 7, seed=1, document=0),
        row(9, seed=2, prompt=4, document=3),
        row(3, 6, seed=3, labels=[False] * 3 + [True] * 6, document=4),
        row(8, seed=4, prompt=8, document=6),
        row(1, seed=5, document=7),
        row(6, seed=6, document=8, offset=4),
        row(4, 4, 4, seed=7, document=9),
        row(2, 11, seed=8, prompt=2, document=12),
    ]


def single_rows():
    """Eight rows of one document each, of unequal lengths: padded, with an attention mask."""
    lengths = (9, 3, 12, 1, 7, 7, 2, 10)
    return [row(length, seed=n, prompt=3 * (n % 2), document=n) for n, length in enumerate(lengths)]


def known_of(document):
    """The columns of a document; every fifth has none."""
    if document % 5 == 4:
        return {}
    return {"domain": ("math", "code", "prose")[document % 3], "level": document % 4}


def rows_with_columns():
    """Eight rows whose documents have columns, in one of which documents follow one another."""
    rows = packed_rows()
    following = row(4, 5, 4, seed=9, document=14)
    following["position"] = np.arange(13)
    rows[4] = following
    for each in rows:
        documents = list(dict.fromkeys(each["document"].tolist()))
        each["columns"] = [known_of(document) for document in documents]
    rows[1]["columns"] = {**rows[1]["columns"][0], "source": "student"}
    return rows
