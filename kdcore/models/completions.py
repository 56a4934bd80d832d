"""Prompts and completions, as engine, rollouts and checkpoints exchange them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcore.data.where import Columns

FIRST = 1 << 40  # number of the first generated document, above all of the data's
ANSWERS = 1 << 16  # document numbers reserved per prompt, one for each completion


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt, as ids."""

    ids: Sequence[int]
    seed: int  # of all random numbers of its completion, with the token's index
    document: int = -1  # index of its document in the training split
    columns: Columns = field(default_factory=dict)  # of that document
    reference: Sequence[int] = ()  # the data's own continuation
    exchange: int = 0  # which learned answer of its document it asks for: -1 the last; 0: none

    def again(self, number: int) -> Prompt:
        """The same prompt with other random numbers, for a further completion; 0 is itself."""
        return self if not number else replace(self, seed=derived_seed(self.seed, number))


@dataclass(frozen=True, eq=False)
class Completion:
    """A completion of a prompt."""

    ids: Sequence[int]  # including the token that ends it, if finished
    finished: bool  # whether it ended by itself instead of being cut
    log_probs: Sequence[float] | None = None  # nats, at temperature 1 over the shared ids
    source: str = "student"  # who generated it
    prompt: Prompt | None = None  # if not the requested one; the engine sets it


@dataclass(frozen=True)
class Sampling:
    """Sampling options. Temperature 0 is greedy; top_k 0 and top_p 1 keep all ids."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    ends: frozenset[int] = frozenset()  # ids that end a completion
    vocabulary: int | None = None  # only ids below this; None: all of the model's


def derived_seed(*numbers: int) -> int:
    """A 63-bit seed derived from all of these numbers, each at least 0."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def uniforms(seed: int, count: int) -> np.ndarray:
    """The uniform numbers in [0, 1) of a prompt's completion, by token index [count]."""
    return np.random.default_rng(seed).random(count)


def completions_state(completions: Sequence[Completion]) -> dict[str, Tensor | str]:
    """Completions with their prompts, as tensors and a text for a `state_dict`."""
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
    """The inverse of `completions_state`."""
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
