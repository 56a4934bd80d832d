"""Writing token by token: with a key-value cache where that was proved, else without."""

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

if TYPE_CHECKING:
    from transformers import DynamicCache

_log = logging.getLogger("kdcore")


class Decoder(Protocol):
    """Rows that grow by a token at a time."""

    states: Tensor  # [rows, H]: of the last token of each row

    def advance(self, ids: Tensor, going: Sequence[int]) -> None:
        """Go on with these rows only, and one more token for each of them [going]."""
        ...


class Cached:
    """Rows padded at the left, and what their tokens were to attention kept."""

    def __init__(self, model: LanguageModel, rows: Sequence[Sequence[int]]) -> None:
        from transformers import DynamicCache

        self._model = model
        self._cache: DynamicCache = DynamicCache(config=model.model.config)
        time, device = max(map(len, rows)), model.device
        pads = [time - len(row) for row in rows]
        ids = [[0] * pad + list(row) for pad, row in zip(pads, rows, strict=True)]
        mask = [[0] * pad + [1] * len(row) for pad, row in zip(pads, rows, strict=True)]
        self._mask = torch.tensor(mask, device=device)
        self._next = self._mask.sum(1)  # the position of the next token of each row
        places = (self._mask.cumsum(1) - 1).clamp(min=0)
        self.states = self._run(torch.tensor(ids, device=device), places)

    def advance(self, ids: Tensor, going: Sequence[int]) -> None:
        """The others leave the cache."""
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
    """All of each row again for each token, padded at the right: for models without such a cache,
    or whose cache gives other numbers.
    """

    def __init__(self, model: LanguageModel, rows: Sequence[Sequence[int]]) -> None:
        self._model, self._rows = model, [list(row) for row in rows]
        self.states = self._run()

    def advance(self, ids: Tensor, going: Sequence[int]) -> None:
        """One row longer."""
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
    """The quickest way that gives the model's own numbers. No row is empty."""
    return (Cached if is_exact_with_cache(model) else Whole)(model, rows)


_proved: WeakKeyDictionary[LanguageModel, bool] = WeakKeyDictionary()


def is_exact_with_cache(model: LanguageModel) -> bool:
    """Whether rows that are padded at the left and go on with a cache are what they are alone."""
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
    """Scores of the token that follows each of some rows, which grow by a token at a time."""

    def logits(self) -> Tensor:
        """[rows, V]."""
        ...

    def advance(self, ids: Tensor, going: Sequence[int]) -> None:
        """Go on with these rows only, and one more token for each of them [going]."""
        ...


class _OfModel:
    """Those of a model, which its head makes of a decoder's states."""

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
    """A model's scores of the ids below `vocabulary`, with a key-value cache where it can.

    No row is empty. The caller sees to evaluation mode, precision and that no gradient is kept.
    """
    return _OfModel(model, rows, vocabulary)


def sample(
    model: LanguageModel, prompts: Sequence[Prompt], sampling: Sampling, *, source: str = "student"
) -> list[Completion]:
    """An answer of a model to each prompt, all written together; finished ones leave the group.

    Each token's random number comes from the prompt's seed and the token's index. The caller sees
    to evaluation mode and precision.
    """
    if not prompts:
        return []
    with torch.no_grad():
        following = next_tokens(model, [each.ids for each in prompts], sampling.vocabulary)
    return sample_from(following, prompts, sampling, source=source)


def sample_from(
    following: NextTokens, prompts: Sequence[Prompt], sampling: Sampling, *, source: str
) -> list[Completion]:
    """The same of anything that scores the next tokens of the prompts; its ids are what it has."""
    draws = np.stack([uniforms(each.seed, sampling.max_new_tokens) for each in prompts])
    ids: list[list[int]] = [[] for _ in prompts]
    logs: list[list[float]] = [[] for _ in prompts]
    with torch.no_grad():
        there = list(range(len(prompts)))
        for index in range(sampling.max_new_tokens):
            chosen, log_probs = draw(following.logits(), draws[there, index], sampling)
            new = chosen.tolist()
            for n, one, log in zip(there, new, log_probs.tolist(), strict=True):
                ids[n].append(one)
                logs[n].append(log)
            going = [n for n, one in enumerate(new) if one not in sampling.ends]
            if not going or index + 1 == sampling.max_new_tokens:
                break
            following.advance(chosen[torch.tensor(going, device=chosen.device)], going)
            there = [there[n] for n in going]
    return [
        Completion(tuple(some), some[-1] in sampling.ends, tuple(each), source)
        for some, each in zip(ids, logs, strict=True)
    ]


def draw(logits: Tensor, numbers: np.ndarray, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Ids by their random numbers in [0, 1), and their log-probabilities at temperature 1 [n].

    The id at which the cumulated probability, in the order of ids, exceeds the number.
    """
    logs = logits.log_softmax(-1)
    if sampling.temperature == 0:
        ids = logits.argmax(-1)
    else:
        scores = allowed(logits.double() / sampling.temperature, sampling)
        whole = scores.softmax(-1).cumsum(-1)
        total = whole[:, -1:]
        point = torch.from_numpy(numbers).to(total.device)[:, None] * total
        # Rounding must not reach the sum itself: behind the last id there is none.
        point = torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))
        ids = torch.searchsorted(whole, point, right=True).squeeze(1)
    return ids, logs.gather(1, ids[:, None]).squeeze(1)


def allowed(scores: Tensor, sampling: Sampling) -> Tensor:
    """The scores [n, V] with -inf for what top_k and then top_p leave out; the likeliest stays."""
    if 0 < sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, places = scores.sort(descending=True, stable=True)
        each = ordered.softmax(-1)
        left_out = each.cumsum(-1) - each >= sampling.top_p
        scores = scores.masked_fill(left_out.gather(1, places.argsort(-1)), -torch.inf)
    return scores
