"""A teacher that reads the student's tokens in another context, built from document columns."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from kdcore_sft import DIALOGUE, Answered, Dialogues, Reteller, Told
from pydantic import Field, field_validator
from torch import Tensor

from kdcore import (
    Batch,
    Piece,
    RetokenizedBatch,
    Run,
    RunError,
    Spans,
    Teacher,
    TeacherOutputs,
    bos_of,
    columns_of,
    component,
    hookimpl,
    on_host,
    pieces_of,
    read_nll,
    read_outputs,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OWN = ("prompt", "answer")  # of a dialogue: the student's prompt, and the data's answer


class _Both(NamedTuple):
    """The teacher's batch, and for each flat student position the teacher's position or -1."""

    other: RetokenizedBatch
    on_host: np.ndarray
    places: Tensor


@component
class Prompted(Teacher):
    """A teacher with the student's tokenizer that reads additional context.

    `template` is a text with column names in braces, such as "{prompt}\\n\\nA solution:
    {solution}". In a dialogue (data "sft") it replaces the turn before the first answer, where
    {prompt} is the text of that turn and {answer} the data's answer; the answer and everything
    after it are the student's tokens. For other documents it is prepended. If a rollout's prompt
    was truncated, the teacher knows none of its tokens.
    """

    name = "prompted"
    teacher: Teacher
    template: Annotated[str, Field(min_length=1, description="a text with {columns}")]

    def __post_init__(self) -> None:
        self._reteller: Reteller | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._bos: list[int] = []
        self._made: WeakKeyDictionary[Batch, _Both] = WeakKeyDictionary()

    @field_validator("template")
    @classmethod
    def _names_columns(cls, template: str) -> str:
        try:
            named = [name for _, name, _, _ in string.Formatter().parse(template)]
        except ValueError as error:
            raise ValueError(f"{error}; write {{{{ and }}}} for braces that stay") from None
        if not any(named):
            raise ValueError('names no column in braces, as "{solution}" does')
        if any(name is not None and not name.isidentifier() for name in named):
            raise ValueError("has braces around something else than the name of a column")
        return template

    def faults(self, recipe: object) -> Iterable[str]:
        """Reject an inner teacher with its own tokens, or with stored outputs per student token."""
        if self.teacher.own_tokens:
            yield f"the teacher {self.teacher.name!r} within reads tokens of its own"
        if self.teacher.bytes_per_token():
            yield (
                f"the teacher {self.teacher.name!r} within stores what it says of the student's "
                f"tokens: put {self.teacher.name!r} around 'prompted'"
            )

    def load(self, run: Run) -> None:
        """Look up how dialogues are rendered; the engine has loaded the inner teacher."""
        self._tokenizer, self._bos = run.tokenizer, bos_of(run.data, run.tokenizer)
        data = run.data
        if isinstance(data, Dialogues):
            template, options = data.template or "auto", data.chat_template_kwargs
            self._reteller = Reteller(run.tokenizer, template, options)
        elif run.tokenizer.chat_template:
            self._reteller = Reteller(run.tokenizer)

    def reads_columns(self) -> Sequence[Mapping[str, list[str]]]:
        """The template's columns."""
        named = {name for _, name, _, _ in string.Formatter().parse(self.template) if name}
        return [{name: []} for name in sorted(named - {*_OWN})]

    def optional_columns(self) -> Sequence[str]:
        """The dialogues."""
        return [DIALOGUE]

    def ids_known(self) -> int | None:
        """Those of the inner teacher."""
        return self.teacher.ids_known()

    def knows_others_at(self, temperature: float) -> bool | None:
        """As the inner teacher."""
        return self.teacher.knows_others_at(temperature)

    def gives_logits(self) -> bool:
        """As the inner teacher."""
        return self.teacher.gives_logits()

    def is_estimate(self) -> bool:
        """As the inner teacher."""
        return self.teacher.is_estimate()

    def gives_losses(self) -> bool:
        """As the inner teacher."""
        return self.teacher.gives_losses()

    def known(self, batch: Batch) -> Tensor:
        """All tokens except those after a truncated prompt, bool [valid]. Computed on the host."""
        return torch.from_numpy(self._of(batch).on_host[on_host(batch).valid] >= 0)

    def read(self, batch: Batch) -> TeacherOutputs:
        """Let the inner teacher read its own batch, then map its positions to the student's."""
        both = self._of(batch)
        at = read_outputs(self.teacher, both.other.batch)
        return lambda positions: at(both.places[positions].clamp(min=0))

    def nll(self, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
        """Negative log-likelihoods of the student's tokens in the teacher's context."""
        both = self._of(batch)
        at = read_nll(self.teacher, both.other.batch)
        return lambda positions, labels: at(both.places[positions].clamp(min=0), labels)

    def fingerprint(self) -> str:
        """The inner teacher, and the template."""
        return f"prompted({self.teacher.fingerprint()}, template={self.template!r})"

    def _of(self, batch: Batch) -> _Both:
        if batch not in self._made:
            pieces = [self._piece(batch, *each) for each in pieces_of(batch)]
            other = RetokenizedBatch.of(batch, pieces, batch.vocabulary)
            spans, places = other.spans, np.full(batch.labels.numel(), -1)
            follows = on_host(batch).position[spans.first] > 0  # the first has no predictor
            places[spans.first[follows] - 1] = spans.other_first[follows] - 1
            sent = torch.from_numpy(places)
            if batch.labels.is_cuda:
                sent = sent.pin_memory().to(batch.labels.device, non_blocking=True)
            self._made[batch] = _Both(other, places, sent)
        return self._made[batch]

    def _piece(self, batch: Batch, start: int, ids: np.ndarray) -> Piece:
        """The teacher's version of a piece: a context, then the same tokens."""
        columns = columns_of(batch).at(start)
        text = columns.get(DIALOGUE)
        if not isinstance(text, str) or self._reteller is None:
            return self._behind_text(columns, ids)
        known = Told.of(text)
        answers = known.answers
        if batch.split.written:
            prompt = _prompt_of(batch, start, len(ids))
            answers = [each for each in answers if each.first == prompt]
        if not answers or answers[0].first == 0:
            return Piece(ids, Spans.joined([]))
        context = self._asked(known, answers[0], columns)
        return _joined(context, ids, answers[0].first)

    def _asked(self, known: Told, answer: Answered, columns: Mapping[str, object]) -> np.ndarray:
        """A dialogue up to an answer, with the template in the turn before it."""
        assert self._reteller is not None
        messages = list(known.messages)
        turn = answer.turn - 1
        if turn >= 0:
            own = dict(zip(_OWN, map(_content, messages[turn : turn + 2]), strict=True))
            messages[turn] = {**messages[turn], "content": self._filled({**columns, **own})}
        return self._reteller.prompt(known._replace(messages=messages), answer)

    def _behind_text(self, columns: Mapping[str, object], ids: np.ndarray) -> Piece:
        """A document that is not a dialogue: its bos, the template's text, then its tokens."""
        assert self._tokenizer is not None, "a teacher is read after it was loaded"
        begins = len(self._bos) if ids[: len(self._bos)].tolist() == self._bos else 0
        text = self._filled({**dict.fromkeys(_OWN, ""), **columns})
        found = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return _joined(np.array([*ids[:begins], *found["input_ids"]], np.int64), ids, begins)

    def _filled(self, columns: Mapping[str, object]) -> str:
        try:
            return self.template.format_map(columns)
        except KeyError as error:
            raise RunError(
                f"a document has no column {error.args[0]!r}, which the template of the teacher "
                "'prompted' names; keep_columns in [data] keeps those of files"
            ) from None


def _content(message: Mapping[str, Any]) -> str:
    """The text of a turn; parts are concatenated."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(each["text"] for each in content)


def _joined(context: np.ndarray, ids: np.ndarray, first: int) -> Piece:
    """A context, followed by the student's ids from an index on, which are known."""
    ours = np.arange(first, len(ids))
    theirs = ours - first + len(context)
    if not len(context):  # no position predicts the first one
        ours, theirs = ours[1:], theirs[1:]
    return Piece(np.concatenate([context, ids[first:]]), Spans(ours, ours + 1, theirs, theirs + 1))


def _prompt_of(batch: Batch, start: int, length: int) -> int:
    """The number of prompt tokens in a written piece."""
    valid = on_host(batch).valid
    inside = valid[(valid >= start) & (valid < start + length)]
    return int(inside[0]) + 1 - start if len(inside) else length


@hookimpl
def kdcore_teachers() -> Sequence[type[Teacher]]:
    """The teacher `prompted`."""
    return [Prompted]
