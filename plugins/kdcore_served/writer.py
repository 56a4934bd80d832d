"""The writer `served`: answers from a model behind any OpenAI-compatible server."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Annotated, Any

from kdcore_rollouts.dialogue import MESSAGES, asked_in
from kdcore_rollouts.kept import Answers, KeptAnswer, Key, key_of_messages, seed_of
from pydantic import Field

from kdcore import Completion, Prompt, Rollout, Run, RunError, component
from kdcore_served.client import ELSEWHERE, Client, Refused

_log = logging.getLogger("kdcore")
_FEW = 20  # answers below which a few that are kept say nothing
_LEFT_OUT = {"content_filter": "refused", "length": "truncated"}
"""Why a server ends an answer -> why it is left out."""


@component
class ServedWrites(Rollout):
    """Answers from a server's `/v1/chat/completions`; log-probabilities are not needed.

    The request is the dialogue up to the answer, so `sft` data has to keep it: `keep_columns =
    ["messages"]`. Each prompt gets `n` answers, once; answers are stored next to the teacher caches
    as they arrive. Refused requests, and answers that are empty or longer than `max_new_tokens`,
    are counted and skipped. `top_k` is sent only if it is not 0, as some servers do not accept it.
    """

    name = "served"
    elsewhere = ELSEWHERE
    url: Annotated[str, Field(pattern="^https?://", description="such as http://127.0.0.1:8000")]
    model: Annotated[str, Field(description="the name that the server knows it by")]
    n: Annotated[int, Field(ge=1, description="answers to each prompt")] = 1
    concurrency: Annotated[int, Field(ge=1, description="requests at a time")] = 16
    timeout: Annotated[float, Field(gt=0, description="seconds, of one request")] = 120.0
    give_up_after: Annotated[float, Field(ge=0, description="seconds out of reach")] = 600.0
    key_env: Annotated[str | None, Field(description="the variable that holds the key")] = None

    def __post_init__(self) -> None:
        self._client: Client | None = None
        self._answers: Answers | None = None
        self._seen: dict[Key, str] = {}  # why answers were left out; "" if they were not
        self._warns = False  # it did

    def reads_columns(self) -> Sequence[Mapping[str, list[str]]]:
        """The dialogue."""
        return [{MESSAGES: []}]

    def generate(self, run: Run, prompts: Sequence[Prompt]) -> Sequence[Sequence[Completion]]:
        """`n` answers per prompt, requested concurrently."""
        kept, keys = self.kept(run), [self.keys(prompt) for prompt in prompts]
        new = {
            key: prompt
            for prompt, some in zip(prompts, keys, strict=True)
            for key in some
            if key not in kept
        }
        if new:
            self._connected()
            with ThreadPoolExecutor(self.concurrency, "kdcore-served") as pool:
                list(pool.map(lambda one: kept.put(one[0], self._asked(*one)), new.items()))
        given = [
            [self._completion(run, kept[key], prompt) for key in some]
            for prompt, some in zip(prompts, keys, strict=True)
        ]
        self._watch(run, kept, keys, given)
        return [[one for one in some if one is not None] for some in given]

    def _watch(
        self,
        run: Run,
        kept: Answers,
        keys: Sequence[Sequence[Key]],
        given: Sequence[Sequence[Completion | None]],
    ) -> None:
        """Warn once if most answers are left out: a run that trains on none looks healthy."""
        for key, one in zip(chain(*keys), chain(*given), strict=True):
            self._seen[key] = "" if one else kept[key].left_out or "longer in the student's ids"
        counts = Counter(self._seen.values())
        total, good = counts.total(), counts[""]
        if self._warns or not run.main or 2 * good >= total or (good and total < _FEW):
            return
        self._warns = True
        why = ", ".join(f"{count} {each}" for each, count in sorted(counts.items()) if each)
        _log.warning(
            f"rollouts: {total - good} of {total} answers of {self.model!r} are left out ({why}); "
            "a larger rollout.max_new_tokens leaves out fewer that are truncated"
        )

    def kept(self, run: Run) -> Answers:
        """The answers stored so far."""
        if self._answers is None:
            drawn = ("max_new_tokens", "temperature", "top_k", "top_p")
            meta = {"model": self.model, "sampling": {key: getattr(self, key) for key in drawn}}
            self._answers = Answers.open(run.caches, self.name, meta, self.model)
        return self._answers

    def keys(self, prompt: Prompt) -> list[Key]:
        """The lookup keys of the prompts' answers."""
        key = key_of_messages(_messages(prompt))
        return [(key, number) for number in range(self.n)]

    def _asked(self, key: Key, prompt: Prompt) -> KeptAnswer:
        messages = _messages(prompt)
        body: dict[str, object] = {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": seed_of(*key) & 0x7FFFFFFF,
        }
        if self.top_k:
            body["top_k"] = self.top_k
        try:
            said = self._connected().post("/v1/chat/completions", body)
        except Refused as error:
            if error.is_about_content:
                return KeptAnswer(messages=messages, left_out="refused")
            raise
        text, reason = self._choice(said)
        left_out = _LEFT_OUT.get(reason, "" if text.strip() else "empty")
        return KeptAnswer(messages=messages, text=text, left_out=left_out)

    def _choice(self, said: Any) -> tuple[str, str]:
        """An answer's text, and why it ended."""
        try:
            choice = said["choices"][0]
            message = choice["message"]
            text, refusal = message.get("content"), message.get("refusal")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise RunError(
                f"{self.url} answered without choices[0].message: is it a server of "
                "/v1/chat/completions?"
            ) from None
        if not isinstance(text, str | None):
            raise RunError(f"{self.url} gave {type(text).__name__} as an answer's content")
        if refusal and not text:
            return "", "content_filter"
        return text or "", str(choice.get("finish_reason"))

    def _connected(self) -> Client:
        if self._client is None:
            self._client = Client(
                self.url,
                timeout=self.timeout,
                give_up_after=self.give_up_after,
                key_env=self.key_env,
            )
        return self._client

    def _completion(self, run: Run, one: KeptAnswer, prompt: Prompt) -> Completion | None:
        """An answer in the student's ids; None if it is skipped."""
        ids = [] if one.left_out else _encoded(run, one.text, prompt)
        if not ids or len(ids) > self.max_new_tokens:
            return None
        return Completion(ids, True, source="teacher")


def _messages(prompt: Prompt) -> Sequence[Mapping[str, Any]]:
    found = asked_in(prompt)
    if found is None:
        raise RunError(
            "the writer 'served' sends the dialogue up to each answer, but the data does not keep "
            'it: use = "sft" in [data] with keep_columns = ["messages"] does'
        )
    return found


def _encoded(run: Run, text: str, prompt: Prompt) -> list[int]:
    """An answer's ids, with the token that ends the data's answers, else the tokenizer's eos."""
    ids: list[int] = run.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    last = prompt.reference[-1] if len(prompt.reference) else None
    end = last if last in run.tokenizer.all_special_ids else run.tokenizer.eos_token_id
    return [*ids, end]
