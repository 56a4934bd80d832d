"""The forms of records, and the dialogues they contain."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from kdcore_text.record import records_within
from kdcore_text.records import Record

from kdcore import RunError
from kdcore_sft.messages import Message, checked, plain, text_of, without_nothing

_UNDERSTOOD = (
    "instruction and output (and input, if there is one), prompt and completion, messages, or "
    "conversations"
)
_TURNS = ("messages", "conversations")


@dataclass(frozen=True)
class Dialogue:
    """Turns that end with the assistant's. `where` is the origin, for messages.

    A turn has `role`, `content` (text, parts or None) and any other keys of the record; `train` is
    False for assistant turns that are read and not trained. `given` holds the record's values
    outside of its turns, for chat templates that use them. `spelled`: special tokens in its texts
    are masked, so that they stay text.
    """

    messages: Sequence[Message]
    where: str
    given: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)  # kept columns, for `where`
    spelled: bool = False


def dialogue_of(record: Record, system: str | None = None) -> Dialogue:
    """A record as a dialogue. `system` is added if it has no system turn."""
    # A table has every column in every row: None means absent.
    values = {key: value for key, value in record.values.items() if value is not None}
    if any(key in values for key in _TURNS):
        key = next(key for key in _TURNS if key in values)
        messages = _up_to_answer(checked(values.pop(key), key, record.where), record.where)
    elif "instruction" in values:
        given = [_text(values, key, record) for key in ("instruction", "input") if key in values]
        answer = _needed(values, "output", record)
        messages = _exchange("\n".join(filter(None, given)), answer)
        values = _without(values, "instruction", "input", "output")
    elif "prompt" in values:
        messages = _prompted(values, record)
        values = _without(values, "prompt", "completion")
    else:
        raise RunError(_unknown(record.where, values))
    own = text_of(values.pop("system"), f"{record.where} has system") if "system" in values else ""
    opening = own or system
    if opening and not any(each["role"] in ("system", "developer") for each in messages):
        messages = [{"role": "system", "content": opening}, *messages]
    return Dialogue(messages, record.where, _given(values, record.where))


def _exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _prompted(values: Mapping[str, Any], record: Record) -> list[Message]:
    """Texts, or turns of which those in the completion are trained."""
    if isinstance(values.get("completion"), list | tuple):
        parts = {key: checked(values[key], key, record.where) for key in ("prompt", "completion")}
        read = [
            {**each, "train": False} if each["role"] == "assistant" else each
            for each in parts["prompt"]
        ]
        return _up_to_answer([*read, *parts["completion"]], record.where)
    answer = _needed(values, "completion", record)
    return _exchange(_text(values, "prompt", record), answer)


def _needed(values: Mapping[str, Any], key: str, record: Record) -> str:
    if key not in values:
        raise RunError(
            f"{record.where} has {', '.join(map(str, values))}, but lacks {key}; if it has "
            f'another name, set fields = {{{key} = "NAME"}} in [data]'
        )
    return _text(values, key, record)


def _text(values: Mapping[str, Any], key: str, record: Record) -> str:
    return text_of(values[key], f"{record.where} has {key}")


def _up_to_answer(messages: list[Message], where: str) -> list[Message]:
    """The turns up to the last assistant turn: later ones have no answer."""
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise RunError(f"{where} has no assistant turn among its messages")
    return messages


def _without(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def _unknown(where: str, values: Mapping[str, Any]) -> str:
    said = f"{where} has {', '.join(map(str, values)) or 'nothing'}, and needs {_UNDERSTOOD}"
    if hint := records_within(values):
        return said + hint
    texts = [key for key, value in values.items() if isinstance(value, str)]
    if len(texts) > 1:
        named = f'instruction = "{texts[0]}", output = "{texts[1]}"'
        said += f"; say which is which in [data]: fields = {{{named}}}"
    return said


def _given(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values outside of the turns; tool definitions may be JSON strings."""
    options = values.get("chat_template_kwargs", {})
    if not isinstance(options, Mapping):
        _refuse(where, f"has chat_template_kwargs of type {type(options).__name__}, no table")
    given = {str(key): value for key, value in {**values, **without_nothing(options)}.items()}
    given.pop("chat_template_kwargs", None)
    for key in ("tools", "documents"):
        if key in given:
            given[key] = _tables(given[key], key, where)
    return {key: plain(value) for key, value in given.items()}


def _tables(value: Any, key: str, where: str) -> list[Any]:
    value = _parsed(value, key, where)
    if not isinstance(value, Sequence):
        _refuse(where, f"has {key} of type {type(value).__name__}, expected a list")
    tables = [_parsed(each, key, where) for each in value]
    for each in tables:
        if not isinstance(each, Mapping):
            _refuse(where, f"has {type(each).__name__} among its {key}, expected tables")
    return tables


def _parsed(value: Any, key: str, where: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise RunError(f"{where} has {key} that are text but not JSON: {error}") from None


def _refuse(where: str, problem: str) -> NoReturn:
    raise RunError(f"{where} {problem}")
