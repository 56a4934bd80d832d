"""The teacher `served`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdcore import (
    Batch,
    Run,
    RunError,
    SparseLogits,
    Teacher,
    TeacherOutputs,
    component,
    load_tokenizer,
    pieces_of,
    tokenizer_hash,
)
from kdcore_served.apis import Answer, Api, Model, SGLang, Vllm
from kdcore_served.client import ELSEWHERE, Client, Refused
from kdcore_served.requests import Requests, answers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_APIS = {"vllm": Vllm, "sglang": SGLang}
_PROBE = (
    "Write down what the numbers 1, 2 and 3.5 have in common, then say it again in one line:\n"
    "def same(a, b): return a == b  # naïve, 東京, and so on until nothing new is left to say."
)
_PROBED = 64  # ids in the fixed text
_OTHER_TOKENIZER = 'Name its tokenizer in `tokenizer`, with [teacher] use = "aligned" around it'
_DIFFERENT = 0.1  # share of ids with other texts: servers may render a few in their own way
_CLOSE = 0.02  # nats by which a server's answers may vary


@component
class Served(Teacher):
    """A model behind a vLLM or SGLang server: its k likeliest ids at each position.

    The server must allow as many log-probabilities: `vllm serve MODEL --max-logprobs 20`. Requests
    contain exact ids, never text. If the server is unreachable for `give_up_after` seconds, the run
    writes a checkpoint and ends. The answers to a fixed text are part of each checkpoint: a server
    whose answers have changed is an error.
    """

    name = "served"
    elsewhere = ELSEWHERE
    url: Annotated[str, Field(pattern="^https?://", description="such as http://127.0.0.1:8000")]
    model: Annotated[str, Field(description="the name that the server knows it by")]
    k: Annotated[int, Field(ge=1, description="ids at each position")] = 20
    api: Literal["vllm", "sglang"] = "vllm"
    source: Annotated[
        str | None,
        Field(alias="tokenizer", description="a folder or a hub name; by default the student's"),
    ] = None
    concurrency: Annotated[int, Field(ge=1, description="requests at a time")] = 16
    timeout: Annotated[float, Field(gt=0, description="seconds, of one request")] = 120.0
    give_up_after: Annotated[float, Field(ge=0, description="seconds out of reach")] = 600.0
    key_env: Annotated[str | None, Field(description="the variable that holds the key")] = None

    def __post_init__(self) -> None:
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._api: Api | None = None
        self._longest: int | None = None  # tokens of a prompt
        self._probed: Answer | None = None  # to the fixed text
        self._coming: WeakKeyDictionary[Batch, list[Future[Answer]]] = WeakKeyDictionary()

    def load(self, run: Run) -> None:
        """Connect, check that the model is served, and query it with the fixed text."""
        client = Client(
            self.url,
            timeout=self.timeout,
            give_up_after=self.give_up_after,
            key_env=self.key_env,
        )
        self._api = _APIS[self.api](client)
        model, tokenizer = self._served(), self.tokenizer() or run.tokenizer
        self._longest = None if model.length is None else model.length - 1
        if tokenizer_hash(tokenizer) == tokenizer_hash(run.tokenizer):
            self._check_length(model, run.recipe.data.block)
        self._text: list[int] = tokenizer.encode(_PROBE, add_special_tokens=False)[:_PROBED]
        now = self._asked_first()
        self._check_tokenizer(tokenizer)
        if self._probed is not None:  # from a checkpoint
            self._check_same(self._probed, now)
        self._probed = now
        self._lost = client.lost
        ask = partial(_likeliest, self._api, self.model, self.k)
        self._requests: Requests[list[int], Answer] = Requests(ask, self.concurrency)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer given in the recipe, if any."""
        if self._tokenizer is None and self.source is not None:
            self._tokenizer = load_tokenizer(self.source)
        return self._tokenizer

    def max_input_length(self) -> int | None:
        """The server's longest prompt: one token of its context is the answer's."""
        return self._longest

    def ids_known(self) -> int:
        """The k likeliest."""
        return self.k

    def knows_others_at(self, temperature: float) -> bool:
        """At 1 only: the server does not give the mass of the others at another temperature."""
        return temperature == 1

    def fingerprint(self) -> str:
        """Model, tokenizer and k; not the address or the request options."""
        tokenizer = self.tokenizer()
        told = tokenizer and tokenizer_hash(tokenizer)
        return f"served(model={self.model!r}, k={self.k}, tokenizer={told!r})"

    def state_dict(self) -> Mapping[str, Tensor | int | float | str | bytes]:
        """The answers to the fixed text."""
        if self._probed is None:
            return {}
        ids, logs = torch.from_numpy(self._probed.ids), torch.from_numpy(self._probed.logs)
        return {"ids": ids, "logs": logs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Reject a server whose answers differ from those of the checkpoint.

        A teacher inside a cache may not be connected yet, and is then compared when it is.
        """
        if not state:
            return
        before, now = Answer(state["ids"].cpu().numpy(), state["logs"].cpu().numpy()), self._probed
        self._probed = before
        if now is not None:
            self._check_same(before, now)

    def prefetch(self, batches: Sequence[Batch]) -> None:
        """Query every piece of the batches, `concurrency` at a time."""
        for batch in batches:
            if batch not in self._coming:
                self._coming[batch] = self._requests.submit([ids for _, ids in _pieces(batch)])

    def read(self, batch: Batch) -> TeacherOutputs:
        """The answers to every piece of the batch."""
        assert self._api is not None, "a teacher is read after it was loaded"
        self.prefetch([batch])
        pieces, given = _pieces(batch), answers(self._coming.pop(batch))
        self._check_after_loss()
        places = torch.zeros(batch.labels.numel(), dtype=torch.int64)
        at = 1
        for (start, _), answer in zip(pieces, given, strict=True):
            places[start : start + len(answer.ids)] = torch.arange(at, at + len(answer.ids))
            at += len(answer.ids)
        ids, logs = self._joined(given, batch.vocabulary)
        device = batch.input_ids.device
        places, ids, logs = places.to(device), ids.to(device), logs.to(device)
        return lambda positions: SparseLogits(ids[places[positions]], logs[places[positions]])

    def _joined(self, given: Sequence[Answer], vocabulary: int) -> tuple[Tensor, Tensor]:
        """All positions' ids [1 + n, k] and log-probabilities including the others' [1 + n, k + 1].

        The first row is for positions that predict nothing.
        """
        ids = np.concatenate([np.arange(self.k)[None], *(each.ids for each in given)])
        even = np.full((1, self.k), -np.log(self.k + 1))
        logs = np.concatenate([even, *(each.logs for each in given)])
        if ids.max() >= vocabulary:
            raise RunError(
                f"{self.url} answers with the id {ids.max()}, and student and teacher share those "
                f"below {vocabulary} only: is {self.model!r} a model with the student's tokenizer?"
            )
        rest = -np.expm1(np.logaddexp.reduce(logs, axis=1))
        others = np.log(np.maximum(rest, 1e-12))
        whole = np.concatenate([logs, others[:, None]], 1)
        return torch.from_numpy(ids), torch.from_numpy(whole).float()

    def _ask(self, ids: Sequence[int]) -> Answer:
        assert self._api is not None, "a teacher is read after it was loaded"
        return _likeliest(self._api, self.model, self.k, ids)

    def _asked_first(self) -> Answer:
        """The answers to the fixed text, at the start."""
        try:
            return self._ask(self._text)
        except Refused as error:
            if "vocabulary" in error.said:
                raise RunError(f"{error}. {_OTHER_TOKENIZER}") from None
            raise

    def _served(self) -> Model:
        assert self._api is not None, "a teacher is read after it was loaded"
        found = {each.name: each for each in self._api.models()}
        if self.model not in found:
            raise RunError(
                f"{self.url} does not serve {self.model!r}; it serves {', '.join(sorted(found))}"
            )
        return found[self.model]

    def _check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Compare the texts of the fixed text's ids on both sides, where the server gives them."""
        assert self._api is not None, "a teacher is read after it was loaded"
        theirs = self._api.texts(self.model, self._text)
        told = {
            id_: (text.strip(), _spellings(tokenizer, id_))
            for id_, text in zip(self._text[1:], theirs, strict=False)
            if text is not None and not text.startswith("token_id:")
        }
        whole = {  # no fragments of characters, which servers render in several ways
            id_: each for id_, each in told.items() if each[0] and "\ufffd" not in each[1][0]
        }
        differ = [id_ for id_, (text, ours) in whole.items() if text not in ours]
        if len(differ) > _DIFFERENT * len(whole):
            theirs_of_it, ours_of_it = whole[differ[0]]
            raise RunError(
                f"{self.url} serves a model with another tokenizer: {len(differ)} of {len(whole)} "
                f"ids differ, such as {differ[0]}, which is {theirs_of_it!r} there and "
                f"{ours_of_it[0]!r} here. {_OTHER_TOKENIZER}"
            )

    def _check_length(self, model: Model, block: int) -> None:
        if model.length is not None and block + 1 > model.length:
            raise RunError(
                f"{self.url} reads {model.length} tokens at most, one of them its answer, and "
                f"data.block is {block}; type --set data.block={model.length - 1}, or start it "
                f"with --max-model-len {block + 1}"
            )

    def _check_after_loss(self) -> None:
        """Query the fixed text again after a lost connection: another model may answer now."""
        assert self._api is not None and self._probed is not None, "read after it was loaded"
        if self._api.client.lost != self._lost:
            self._lost = self._api.client.lost
            self._check_same(self._probed, self._ask(self._text))

    def _check_same(self, before: Answer, now: Answer) -> None:
        same = before.logs.shape == now.logs.shape
        if same and np.abs(before.logs - now.logs).max(initial=0) <= _CLOSE:
            return
        raise RunError(
            f"{self.url} answers differently than before: for the fixed text it gave "
            f"{_shown(before)} and now gives {_shown(now)}. Serve the same model in the same "
            "precision, or start a new run with --fresh"
        )


def _likeliest(api: Api, model: str, k: int, ids: Sequence[int]) -> Answer:
    return api.likeliest(model, ids, k)


def _pieces(batch: Batch) -> list[tuple[int, list[int]]]:
    """The pieces in which something is predicted: their first flat position and their ids."""
    return [(at, ids.tolist()) for at, ids in pieces_of(batch) if len(ids) > 1]


def _spellings(tokenizer: PreTrainedTokenizerBase, id_: int) -> tuple[str, str]:
    """An id's text, and its name in the vocabulary, without spaces around them."""
    return str(tokenizer.decode([id_])).strip(), str(tokenizer.convert_ids_to_tokens(id_)).strip()


def _shown(answer: Answer) -> str:
    first = zip(answer.ids[0, :3], answer.logs[0, :3], strict=True) if len(answer.ids) else ()
    return ", ".join(f"id {id_}: {log:.3f}" for id_, log in first)
