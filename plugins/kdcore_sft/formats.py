"""What a record may look like, and the dialogue that it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from kdcore_text.records import Record

from kdcore import RunError

ROLES = ("system", "user", "assistant")
_UNDERSTOOD = (
    "instruction and output (and input, if there is one), prompt and completion, or messages"
)

Message = Mapping[str, str]
"""`role` and `content`."""


@dataclass(frozen=True)
class Dialogue:
    """Turns that end with the assistant's. `where` says where they come from, for messages."""

    messages: Sequence[Message]
    where: str


def dialogue_of(record: Record, system: str | None = None) -> Dialogue:
    """A record as a dialogue. `system` stands before those that have no system turn."""
    # A table has a column for what any of its records has: what is None is not there.
    values = {key: value for key, value in record.values.items() if value is not None}
    if "messages" in values:
        messages = _messages(values["messages"], record.where)
    elif "instruction" in values:
        given = [_text(values, key, record) for key in ("instruction", "input") if key in values]
        messages = _exchange("\n".join(filter(None, given)), _needed(values, "output", record))
    elif "prompt" in values:
        answer = _needed(values, "completion", record)
        messages = _exchange(_text(values, "prompt", record), answer)
    else:
        there = ", ".join(map(str, values)) or "nothing"
        raise RunError(f"{record.where} has {there}, and needs {_UNDERSTOOD}")
    if system is not None and not any(each["role"] == "system" for each in messages):
        messages = [{"role": "system", "content": system}, *messages]
    return Dialogue(messages, record.where)


def _exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _needed(values: Mapping[str, Any], key: str, record: Record) -> str:
    if key not in values:
        raise RunError(f"{record.where} has {', '.join(values)}, and lacks {key}")
    return _text(values, key, record)


def _text(values: Mapping[str, Any], key: str, record: Record) -> str:
    value = values[key]
    if not isinstance(value, str):
        _refuse(record.where, f"has {key} of the type {type(value).__name__}, and must have text")
    return value


def _messages(given: Any, where: str) -> list[Message]:
    """The turns up to the last of the assistant's: what follows has no answer."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        _refuse(where, f"has messages of the type {type(given).__name__}, and must have a list")
    messages = [_message(each, f"{where}: message {n}") for n, each in enumerate(given, 1)]
    if not messages:
        raise RunError(f"{where} has no messages")
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise RunError(f"{where} has no turn of the assistant's among its messages")
    return messages


def _message(given: Any, where: str) -> Message:
    if not isinstance(given, Mapping):
        _refuse(where, f"has the type {type(given).__name__}, and must have role and content")
    for key in ("role", "content"):
        if given.get(key) is None:
            _refuse(where, f"has no {key}")
        if not isinstance(given[key], str):
            _refuse(
                where, f"has a {key} of the type {type(given[key]).__name__}, and must have text"
            )
    if given["role"] not in ROLES:
        _refuse(where, f"has the role {given['role']!r}; possible are {', '.join(ROLES)}")
    return {key: given[key] for key in ("role", "content")}


def _refuse(where: str, fault: str) -> NoReturn:
    raise RunError(f"{where} {fault}")
