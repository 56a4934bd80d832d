"""Prompts and completions as they pass between the engine, writers and checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcore.data.where import Columns

FIRST = 1 << 40  # the number of the first written document, behind those of all data
ANSWERS = 1 << 16  # so many numbers each prompt has, one for each of its answers


@dataclass(frozen=True, eq=False)
class Prompt:
    """What is answered, as ids."""

    ids: Sequence[int]
    seed: int  # every random number of its answer comes from this and the token's index
    document: int = -1  # which document of the training split it was cut from
    columns: Columns = field(default_factory=dict)  # of that document
    reference: Sequence[int] = ()  # what the data answers
    exchange: int = 0  # which of its document's learned answers it asks for: -1 the last; 0: none

    def again(self, number: int) -> Prompt:
        """The same prompt for another answer: with random numbers of its own; 0 is itself."""
        return self if not number else replace(self, seed=derived_seed(self.seed, number))


@dataclass(frozen=True, eq=False)
class Completion:
    """An answer to a prompt."""

    ids: Sequence[int]  # with the token that ends it, where it is finished
    finished: bool  # whether it ended by itself, and was not cut
    log_probs: Sequence[float] | None = None  # at temperature 1 over the shared ids, in nats
    source: str = "student"  # who wrote it
    prompt: Prompt | None = None  # where another one than was asked for; the engine fills it in


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Temperature 0 takes the likeliest; top_k 0 and top_p 1 leave all in."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    ends: frozenset[int] = frozenset()  # ids that end an answer
    vocabulary: int | None = None  # only ids below this; None: all that the model has


def derived_seed(*numbers: int) -> int:
    """A seed of 63 bits that hangs on all of these numbers, each at least 0."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def uniforms(seed: int, count: int) -> np.ndarray:
    """The random numbers in [0, 1) of a prompt's answer by the index of the token [count]."""
    return np.random.default_rng(seed).random(count)


def completions_state(completions: Sequence[Completion]) -> dict[str, Tensor | str]:
    """Completions with their prompts as tensors and a text, as a `state_dict` may hold them."""
    prompts = [each.prompt or Prompt((), 0) for each in completions]
    logs = [each.log_probs if each.log_probs is not None else () for each in completions]
    rest = [
        {
            "finished": each.finished,
            "source": each.source,
            "log_probs": each.log_probs is not None,
            "prompt": each.prompt is not None,
            "seed": prompt.seed,
            "document": prompt.document,
            "columns": dict(prompt.columns),
        }
        for each, prompt in zip(completions, prompts, strict=True)
    ]
    return {
        **_ragged("ids", [each.ids for each in completions], torch.int32),
        **_ragged("log_probs", logs, torch.float64),
        **_ragged("prompts", [prompt.ids for prompt in prompts], torch.int32),
        **_ragged("references", [prompt.reference for prompt in prompts], torch.int32),
        "rest": json.dumps(rest),
    }


def completions_from(state: Mapping[str, Any]) -> list[Completion]:
    """What `completions_state` was made of."""
    keys = ("ids", "log_probs", "prompts", "references")
    each = zip(json.loads(state["rest"]), *(_lists(state, key) for key in keys), strict=True)
    return [
        Completion(
            ids=ids,
            finished=rest["finished"],
            log_probs=logs if rest["log_probs"] else None,
            source=rest["source"],
            prompt=Prompt(prompt, rest["seed"], rest["document"], rest["columns"], reference)
            if rest["prompt"]
            else None,
        )
        for rest, ids, logs, prompt, reference in each
    ]


def _ragged(key: str, lists: Sequence[Sequence[float]], dtype: torch.dtype) -> dict[str, Tensor]:
    lengths = torch.tensor([len(each) for each in lists], dtype=torch.int64)
    flat = [value for each in lists for value in each]
    return {key: torch.tensor(flat, dtype=dtype), f"{key}.lengths": lengths}


def _lists(state: Mapping[str, Any], key: str) -> Iterator[tuple[Any, ...]]:
    lengths: list[int] = state[f"{key}.lengths"].tolist()
    for each in torch.split(state[key], lengths) if lengths else ():
        yield tuple(each.tolist())
