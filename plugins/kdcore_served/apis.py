"""Requests to vLLM and SGLang for the likeliest ids at each position of a prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdcore import RunError
from kdcore_served.client import Client, Refused

_LEAST = -100.0  # servers may give -inf, which losses would turn into NaN


@dataclass(frozen=True, eq=False)
class Answer:
    """For each id of a prompt but the first: the k likeliest at its position, in order."""

    ids: np.ndarray  # int64 [n - 1, k]
    logs: np.ndarray  # float64 [n - 1, k], log-probabilities at temperature 1


@dataclass(frozen=True)
class Model:
    """A server's information about a model."""

    name: str
    length: int | None  # of the longest prompt with its answer; None: unknown
    root: str | None = None  # the path it was loaded from


class Api(ABC):
    """The API of one kind of server."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def models(self) -> Sequence[Model]:
        """The served models."""
        found = _within(self.client, self.client.get("/v1/models"), "data")
        with self._parsing("models with their ids"):
            return [
                Model(str(each["id"]), each.get("max_model_len"), each.get("root"))
                for each in found
            ]

    def likeliest(self, model: str, ids: Sequence[int], k: int) -> Answer:
        """The k likeliest ids at each position of a prompt."""
        with self._parsing("ids with log-probabilities at each position"):
            pairs = [self._sorted(some, k) for some in self._asked(model, ids, k)]
        if len(pairs) != len(ids) - 1:
            raise self._odd(f"{len(pairs)} positions", f"{len(ids) - 1}")
        each = [list(zip(*some, strict=True)) for some in pairs]
        return Answer(
            np.array([found for found, _ in each], np.int64).reshape(-1, k),
            np.array([logs for _, logs in each], np.float64).reshape(-1, k).clip(min=_LEAST),
        )

    def texts(self, model: str, ids: Sequence[int]) -> list[str | None]:
        """The server's text of each id of a prompt but the first; None where it gives none."""
        with self._parsing("the text of each id"):
            return [text if isinstance(text, str) else None for text in self._texts(model, ids)]

    @abstractmethod
    def _texts(self, model: str, ids: Sequence[int]) -> Iterable[object]:
        """The same, of any type."""

    @abstractmethod
    def _asked(
        self, model: str, ids: Sequence[int], k: int
    ) -> Iterable[Sequence[tuple[int, object]]]:
        """Ids with their log-probabilities at each position but the first, in any order."""

    def _sorted(self, some: Sequence[tuple[int, object]], k: int) -> list[tuple[int, float]]:
        told = [(id_, log) for id_, log in some if isinstance(log, (int, float))]
        if len(told) < len(some) or len(told) < k:
            raise self._odd(f"{len(told)} log-probabilities of a position", f"{k}")
        if any(not log <= 1e-3 for _, log in told):  # NaN too
            raise self._odd("a log-probability above 0, or NaN", "numbers of at most 0")
        if len({id_ for id_, _ in told}) < len(told):
            raise self._odd("an id twice at a position", "each once")
        return sorted(told, key=lambda pair: (-pair[1], pair[0]))[:k]

    @contextmanager
    def _parsing(self, expected: str) -> Iterator[None]:
        """Turn what is raised by JSON of another shape into a sentence."""
        try:
            yield
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise self._odd("JSON of another shape", expected) from None

    def _odd(self, found: str, expected: str) -> RunError:
        return RunError(f"{self.client.url} gave {found}, expected {expected}")


class Vllm(Api):
    """`prompt_logprobs` of vLLM's /v1/completions. The prompt's own id is always included."""

    def _asked(
        self, model: str, ids: Sequence[int], k: int
    ) -> Iterable[Sequence[tuple[int, object]]]:
        for entry in self._entries(model, ids, k):
            yield [(int(id_), told["logprob"]) for id_, told in entry.items()]

    def _texts(self, model: str, ids: Sequence[int]) -> Iterable[object]:
        """As `decoded_token`."""
        entries = self._entries(model, ids, 1)
        each = (entry.get(str(id_)) for id_, entry in zip(ids[1:], entries, strict=False))
        return [told and told.get("decoded_token") for told in each]

    def _entries(self, model: str, ids: Sequence[int], k: int) -> list[Mapping[str, Any]]:
        body = {"model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 0.0}
        try:
            said = self.client.post("/v1/completions", {**body, "prompt_logprobs": k})
        except Refused as error:
            if "logprobs" in error.said and "max" in error.said:
                raise RunError(
                    f"{self.client.url} gives fewer than {k} ids at a position: start it with "
                    f"--max-logprobs {k}, or set a smaller k (vLLM's default is 20)"
                ) from None
            if "logprobs" in error.said:
                raise self._without(str(error)) from None
            raise
        choices = _within(self.client, said, "choices")
        if not isinstance(choices, list) or len(choices) != 1:
            raise self._odd("no list of one choice", "the answer to one prompt")
        if isinstance(choices[0], Mapping) and choices[0].get("prompt_logprobs") is None:
            raise self._without(f"{self.client.url} answered without 'prompt_logprobs'")
        entries: list[Mapping[str, Any]] = _within(self.client, choices[0], "prompt_logprobs")[1:]
        for entry in entries:
            if not isinstance(entry, Mapping):
                raise self._odd(f"{type(entry).__name__} at a position", "ids with numbers")
        return entries

    @staticmethod
    def _without(said: str) -> RunError:
        """Of a server that has the path, but not this capability of vLLM's."""
        return RunError(
            f"{said}: this server gives no log-probabilities of a prompt, as vLLM does, and SGLang "
            'with api = "sglang". The answers of any server teach too: use = "served" in [rollout]'
        )


class SGLang(Api):
    """`input_top_logprobs` of SGLang's /generate."""

    def _asked(
        self, model: str, ids: Sequence[int], k: int
    ) -> Iterable[Sequence[tuple[int, object]]]:
        body = {
            "input_ids": list(ids),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": k,
        }
        said = _within(self.client, self.client.post("/generate", body), "meta_info")
        for entry in _within(self.client, said, "input_top_logprobs")[1:]:
            if not isinstance(entry, Sequence):
                raise self._odd(f"{type(entry).__name__} at a position", "ids with numbers")
            yield [(int(id_), log) for log, id_, *_ in entry]

    def _texts(self, model: str, ids: Sequence[int]) -> Iterable[object]:
        """Of `input_token_logprobs`, which may have them."""
        body = {
            "input_ids": list(ids),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "return_text_in_logprobs": True,
        }
        said = _within(self.client, self.client.post("/generate", body), "meta_info")
        entries = said.get("input_token_logprobs") or []
        return [entry[2] if len(entry) > 2 else None for entry in entries[1:]]


def _within(client: Client, said: Any, key: str) -> Any:
    """The value under nested keys of a response."""
    found = said.get(key) if isinstance(said, Mapping) else None
    if found is None:
        raise RunError(
            f"{client.url} answered without {key!r}: is it a server of the kind that api names?"
        )
    return found
