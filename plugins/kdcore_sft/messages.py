"""The turns of a dialogue: allowed content, and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from kdcore import RunError

ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "observation": "tool",
}
_TRAINED = ("weight", "train", "training")

Message = Mapping[str, Any]
"""`role`, `content` (text, a list of parts of text, or None), and what else the record gives."""


def checked(given: Any, key: str, where: str) -> list[Message]:
    """A record's turns, checked; ShareGPT's `from` and `value` become `role` and `content`."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        _refuse(where, f"has {key} of type {type(given).__name__}, expected a list")
    if not given and key != "prompt":
        raise RunError(f"{where} has no {key}")
    return [_checked(each, f"{where}: message {n}") for n, each in enumerate(given, 1)]


def says_something(message: Message) -> bool:
    """Whether a turn has text, reasoning or calls."""
    if message.get("tool_calls"):
        return True
    texts = [message.get("content"), *(message.get(key) for key in REASONING)]
    return any(joined(each).strip() for each in texts)


REASONING = ("reasoning_content", "thinking", "reasoning")
"""What the thoughts before an answer are called; templates ask for one of these."""


def joined(content: Any) -> str:
    """The text of a content; parts are concatenated."""
    if isinstance(content, list):
        return "".join(each["text"] for each in content)
    return content if isinstance(content, str) else ""


def thoughts_of(message: Message) -> str:
    """The reasoning of an answer, next to its content or within it."""
    within, closed, _ = joined(message.get("content")).partition("</think>")
    thoughts = next((message[key] for key in REASONING if key in message), "")
    return (thoughts or (within.split("<think>")[-1] if closed else "")).strip()


def text_of(value: Any, which: str) -> str:
    """A value that must be text."""
    if not isinstance(value, str):
        raise RunError(f"{which} of type {type(value).__name__}, expected text")
    return value


def without_nothing(value: Any) -> dict[str, Any]:
    """A table without its None values."""
    return {key: each for key, each in value.items() if each is not None}


def plain(value: Any) -> Any:
    """Values as JSON types; other types become text."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _checked(given: Any, where: str) -> Message:
    if not isinstance(given, Mapping):
        _refuse(where, f"has type {type(given).__name__}, expected role and content")
    message = {str(key): plain(value) for key, value in without_nothing(given).items()}
    if "content" in given:
        message.setdefault("content", None)
    if "role" not in message and "from" in message:
        message["role"] = _SHAREGPT.get(str(message["from"]), message["from"])
        del message["from"]
        if "value" in message:
            message["content"] = message.pop("value")
    _check_role(message, where)
    for key in REASONING:
        if not isinstance(message.get(key, ""), str):
            kind = type(message[key]).__name__
            _refuse(where, f"has a {key} of type {kind}, expected text")
    message = _with_content(message, where)
    if not isinstance(message.get("tool_calls", []), list):
        kind = type(message["tool_calls"]).__name__
        _refuse(where, f"has tool_calls of type {kind}, expected a list")
    trained = _trained(message, where)
    for key in _TRAINED:
        message.pop(key, None)
    return message if trained else {**message, "train": False}


def _check_role(message: Mapping[str, Any], where: str) -> None:
    if "role" not in message:
        _refuse(where, "has no role")
    role = message["role"]
    if not isinstance(role, str):
        _refuse(where, f"has a role of type {type(role).__name__}, expected text")
    if role not in ROLES:
        _refuse(where, f"has the role {role!r}; possible are {', '.join(ROLES)}")


def _with_content(message: dict[str, Any], where: str) -> dict[str, Any]:
    """With a content of text, parts, or None next to calls or reasoning."""
    content = message.get("content")
    if isinstance(content, list):
        return {**message, "content": [_part(each, n, where) for n, each in enumerate(content, 1)]}
    if content is None:
        if message["role"] != "assistant" or not says_something(message):
            _refuse(where, "has no content")
    elif not isinstance(content, str):
        kind = type(content).__name__
        _refuse(where, f"has a content of type {kind}, expected text or parts")
    return message


def _part(part: Any, number: int, where: str) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        _refuse(where, f"has a part {number} of type {type(part).__name__}, no text")
    part = without_nothing(part)
    kind = part.get("type", "text")
    if kind != "text":
        _refuse(where, f"has a part {number} of type {kind!r}, and only text is trained on")
    if not isinstance(part.get("text"), str):
        _refuse(where, f"has a part {number} without text")
    return {"type": "text", **part}


def _trained(message: Mapping[str, Any], where: str) -> bool:
    """Whether a turn is trained, if it says so: by `weight`, `train` or `training`."""
    said = {key: message[key] for key in _TRAINED if key in message}
    for key, value in said.items():
        number = key == "weight" and not isinstance(value, bool) and value in (0, 1)
        if not number and (key == "weight" or not isinstance(value, bool)):
            possible = "0 and 1" if key == "weight" else "true and false"
            _refuse(where, f"has {key} = {_shown(value)}; possible are {possible}")
    answers = {bool(value) for value in said.values()}
    if len(answers) > 1:
        _refuse(where, f"has {' and '.join(said)}, which say different things")
    if True in answers and message["role"] != "assistant":
        _refuse(
            where,
            f"has {next(iter(said))} = {_shown(next(iter(said.values())))} and the role "
            f"{message['role']}; the assistant's turns alone are learned",
        )
    return answers != {False} or message["role"] != "assistant"


def _shown(value: Any) -> str:
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return shown if len(shown) < 40 else f"{shown[:37]}..."


def _refuse(where: str, problem: str) -> NoReturn:
    raise RunError(f"{where} {problem}")
