"""Token-by-token decoding, with a key-value cache where it is verified, else without."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from kdcore.models.causal_lm import LanguageModel, random_ids
from kdcore.models.completions import Completion, Prompt, Sampling, uniforms
from kdcore.models.logit_transforms import allclose
from kdcore.sharding.turns import largest

if TYPE_CHECKING:
    from transformers import DynamicCache

_log = logging.getLogger("kdcore")


class Decoder(Protocol):
    """Rows that grow by one token at a time."""

    states: Tensor  # [rows, H]: state of each row's last token

    def advance(self, ids: Tensor, going: Sequence[int]) -> None:
        """Keep only these rows, and append one token to each of them [going]."""
        ...


class Cached:
    """Left-padded rows with a key-value cache."""

    def __init__(self, model: LanguageModel, rows: Sequence[Sequence[int]]) -> None:
        from transformers import DynamicCache

        self._model = model
        self._cache: DynamicCache = DynamicCache(config=model.model.config)
        time, device = max(map(len, rows)), model.device
        pads = [time - len(row) for row in rows]
        ids = [[0] * pad + list(row) for pad, row in zip(pads, rows, strict=True)]
        mask = [[0] * pad + [1] * len(row) for pad, row in zip(pads, rows, strict=True)]
        self._mask = torch.tensor(mask, device=device)
        self._next = self._mask.sum(1)  # position of each row's next token
        places = (self._mask.cumsum(1) - 1).clamp(min=0)
        self.states = self._run(torch.tensor(ids, device=device), places)

    def advance(self, ids: Tensor, going: Sequence[int]) -> None:
        """The other rows leave the cache."""
        if len(going) < len(self._mask):
            at = torch.tensor(going, device=self._mask.device)
            self._cache.batch_select_indices(at)
            self._mask, self._next = self._mask[at], self._next[at]
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], 1)
        self.states = self._run(ids[:, None], self._next[:, None])
        self._next = self._next + 1

    def _run(self, ids: Tensor, places: Tensor) -> Tensor:
        return self._model.next_states(ids, places, self._mask, self._cache)


class Whole:
    """Recomputes each row for every token, right-padded: for models without a key-value cache, or
    whose cache changes the result.
    """

    def __init__(self, model: LanguageModel, rows: Sequence[Sequence[int]]) -> None:
        self._model, self._rows = model, [list(row) for row in rows]
        self.states = self._run()

    def advance(self, ids: Tensor, going: Sequence[int]) -> None:
        """One token longer."""
        new = ids.tolist()
        self._rows = [[*self._rows[n], id_] for n, id_ in zip(going, new, strict=True)]
        self.states = self._run()

    def _run(self) -> Tensor:
        lengths = [len(row) for row in self._rows]
        time, device = max(lengths), self._model.device
        ids = [row + [0] * (time - len(row)) for row in self._rows]
        mask = [[1] * n + [0] * (time - n) for n in lengths]
        places = torch.arange(time, device=device).expand(len(ids), time)
        every = self._model.next_states(
            torch.tensor(ids, device=device), places, torch.tensor(mask, device=device), None
        )
        last = torch.tensor(lengths, device=device) - 1
        return every[torch.arange(len(ids), device=device), last]


def decoder(model: LanguageModel, rows: Sequence[Sequence[int]]) -> Decoder:
    """The fastest decoder that reproduces the model's own logits. Rows must not be empty."""
    return (Cached if is_exact_with_cache(model) else Whole)(model, rows)


_proved: WeakKeyDictionary[LanguageModel, bool] = WeakKeyDictionary()


def is_exact_with_cache(model: LanguageModel) -> bool:
    """Whether left-padded rows with a cache have the same states as each row alone."""
    if model not in _proved:
        with torch.no_grad():
            _proved[model] = _is_exact(model)
        if not _proved[model]:
            _log.info(
                "%s writes without a key-value cache, which is slower: with one, it gives other "
                "numbers",
                type(model.model).__name__,
            )
    return _proved[model]


def _is_exact(model: LanguageModel) -> bool:
    ids = random_ids(model.model, model.device)
    rows = [ids[0, :9].tolist(), ids[1, :4].tolist()]
    more = ids[:, 9:12]
    try:
        made: list[Decoder] = [Cached(model, rows), Whole(model, rows)]
        seen = [[each.states for each in made]]
        for index, going in enumerate(([0, 1], [0], [0])):  # the second row leaves on the way
            for each in made:
                each.advance(more[going, index], going)
            seen.append([each.states for each in made])
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError):
        return False
    return all(allclose(one, other, times=10) for one, other in seen)


class NextTokens(Protocol):
    """Scores of the next token of rows that grow by one token at a time."""

    def logits(self) -> Tensor:
        """[rows, V]."""
        ...

    def advance(self, ids: Tensor, going: Sequence[int]) -> None:
        """Keep only these rows, and append one token to each of them [going]."""
        ...


class _OfModel:
    """Next-token scores of a model, from a decoder's states."""

    def __init__(
        self, model: LanguageModel, rows: Sequence[Sequence[int]], vocabulary: int | None
    ) -> None:
        self._decoder, self._head = decoder(model, rows), model.head()
        self._vocabulary = vocabulary

    def logits(self) -> Tensor:
        return self._head(self._decoder.states)[:, : self._vocabulary]

    def advance(self, ids: Tensor, going: Sequence[int]) -> None:
        self._decoder.advance(ids.to(self._decoder.states.device), going)


def next_tokens(
    model: LanguageModel, rows: Sequence[Sequence[int]], vocabulary: int | None = None
) -> NextTokens:
    """A model's scores of the ids below `vocabulary`, with a key-value cache where possible.

    Rows must not be empty. The caller sets evaluation mode, precision and no_grad.
    """
    return _OfModel(model, rows, vocabulary)


def sample(
    model: LanguageModel, prompts: Sequence[Prompt], sampling: Sampling, *, source: str = "student"
) -> list[Completion]:
    """A model's completion of each prompt, generated as a batch that finished rows leave.

    Each token's random number derives from the prompt's seed and the token's index. The caller sets
    evaluation mode and precision.
    """
    if not prompts and not model.sharded:
        return []
    rows = [each.ids for each in prompts] or [[0]]
    with torch.no_grad():
        following = next_tokens(model, rows, sampling.vocabulary)
    return sample_from(following, prompts, sampling, source=source, together=model.sharded)


def sample_from(
    following: NextTokens,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    source: str,
    together: bool = False,
) -> list[Completion]:
    """The same for any source of next-token scores, over the ids it has.

    `together`: all processes run its models in step. One that is done, or has no prompts and a row
    in their place, continues with a row that is not used until the last one is done.
    """
    draws = [uniforms(each.seed, sampling.max_new_tokens) for each in prompts]
    ids: list[list[int]] = [[] for _ in prompts]
    logs: list[list[float]] = [[] for _ in prompts]
    with torch.no_grad():
        there = list(range(len(prompts)))
        for index in range(sampling.max_new_tokens):
            logits = following.logits()
            numbers = np.array([draws[n][index] for n in there] or [0.0])
            chosen, log_probs = draw(logits, numbers, sampling)
            new = chosen.tolist()[: len(there)]
            for n, one, log in zip(there, new, log_probs.tolist(), strict=False):
                ids[n].append(one)
                logs[n].append(log)
            going = [n for n, one in enumerate(new) if one not in sampling.ends]
            left = index + 1 < sampling.max_new_tokens and bool(going)
            if not (largest(left) if together else left):
                break
            there = [there[n] for n in going]
            rows = going or [0]
            following.advance(chosen[torch.tensor(rows, device=chosen.device)], rows)
    return [
        Completion(tuple(some), some[-1] in sampling.ends, tuple(each), source)
        for some, each in zip(ids, logs, strict=True)
    ]


def draw(logits: Tensor, numbers: np.ndarray, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Sampled ids by their uniform numbers in [0, 1), and their log-probabilities at T = 1 [n].

    Inverse transform sampling: the first id at which the cumulative probability exceeds the number.
    """
    logs = logits.log_softmax(-1)
    if sampling.temperature == 0:
        ids = logits.argmax(-1)
    else:
        scores = allowed(logits.double() / sampling.temperature, sampling)
        whole = scores.softmax(-1).cumsum(-1)
        total = whole[:, -1:]
        point = torch.from_numpy(numbers).to(total.device)[:, None] * total
        # Rounding must not make a number reach the total: there is no id beyond the last.
        point = torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))
        ids = torch.searchsorted(whole, point, right=True).squeeze(1)
    return ids, logs.gather(1, ids[:, None]).squeeze(1)


def allowed(scores: Tensor, sampling: Sampling) -> Tensor:
    """Scores [n, V], with -inf for ids outside top_k and then top_p; the most likely id stays."""
    if 0 < sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, places = scores.sort(descending=True, stable=True)
        each = ordered.softmax(-1)
        # Nucleus sampling (Holtzman et al., 2020): an id is left out if the more likely ones before
        # it already have the mass top_p. Nothing precedes the first one, so it always stays.
        left_out = each.cumsum(-1) - each >= sampling.top_p
        scores = scores.masked_fill(left_out.gather(1, places.argsort(-1)), -torch.inf)
    return scores
