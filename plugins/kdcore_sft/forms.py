"""The form in which a template accepts turns, determined by rendering examples.

Contents may be text or parts, or None next to calls; call arguments may be tables or JSON; not
every template knows the roles developer and tool. Turns are converted to what the template accepts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from kdcore import RunError
from kdcore_sft.messages import REASONING, Message, joined

MARK = "\ue000kdcore\ue001"  # private use area, and no blanks that a template could strip


def _turn(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


QUESTION = _turn("user", "x")
_PARTS = [{"type": "text", "text": MARK}]
_CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": {"k": 1}}}


class Forms:
    """The forms that one template accepts. `try_it` renders turns, or returns "" if refused."""

    def __init__(self, try_it: Callable[[Sequence[Message]], str]) -> None:
        self._try = try_it

    def prepared(self, message: Message, where: str) -> Message:
        """A turn in the form that this template accepts."""
        made = {key: value for key, value in message.items() if key != "train"}
        content = message.get("content")
        if isinstance(content, list) and not self._takes_parts:
            made["content"] = joined(content)
        elif isinstance(content, str) and self._takes_parts_alone:
            made["content"] = [{"type": "text", "text": content}]
        elif content is None and "content" in message and not self._takes_none:
            made["content"] = ""
        if message["role"] == "developer" and not self._takes_developer:
            made["role"] = "system"
        if message["role"] == "tool" and not self._takes_tool:
            raise RunError(
                f"{where}: the chat template writes a tool's turn as the assistant's; set another "
                "template in [data]"
            )
        if "tool_calls" in message:
            made["tool_calls"] = [self._call(each) for each in message["tool_calls"]]
        thoughts = next((made[key] for key in REASONING if key in made), None)
        if thoughts is not None:  # a template reads one of these names
            made = {"thinking": thoughts, **made, "reasoning_content": thoughts}
        return made

    @cached_property
    def _takes_parts(self) -> bool:
        text, parts = (self._try([_turn("user", each)]) for each in (MARK, _PARTS))
        return MARK in parts and (parts == text or MARK not in text)

    @cached_property
    def _takes_parts_alone(self) -> bool:
        return self._takes_parts and MARK not in self._try([_turn("user", MARK)])

    @cached_property
    def _takes_none(self) -> bool:
        """Whether content may be None next to calls, as in OpenAI's format, and is not printed."""
        calls = [self._call(_CALL)]
        none, empty = (
            self._try([QUESTION, {**_turn("assistant", each), "tool_calls": calls}])
            for each in (None, "")
        )
        return bool(none) and none.count("None") == empty.count("None")

    @cached_property
    def _takes_developer(self) -> bool:
        developer, assistant = (
            self._try([_turn(role, MARK), QUESTION]) for role in ("developer", "assistant")
        )
        return MARK in developer and developer != assistant

    @cached_property
    def _takes_tool(self) -> bool:
        """Whether a tool's turn differs from the assistant's, as far as examples show."""
        tool, assistant = (self._try([QUESTION, _turn(r, MARK)]) for r in ("tool", "assistant"))
        return not tool or tool != assistant

    def _call(self, call: Any) -> Any:
        """A call with its arguments as a table or as JSON, as the template accepts."""
        if not isinstance(call, dict):
            return call
        if isinstance(call.get("function"), dict):
            return {**call, "function": self._call(call["function"])}
        arguments = call.get("arguments")
        if isinstance(arguments, dict) and self._takes_json and not self._takes_tables:
            return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)}
        if isinstance(arguments, str) and not self._takes_json:
            try:
                return {**call, "arguments": json.loads(arguments)}
            except ValueError:
                return call
        return call

    @cached_property
    def _takes_json(self) -> bool:
        """Whether arguments may be JSON, as in OpenAI's format, and are not quoted twice."""
        found = self._called_with(f'{{"k": "{MARK}"}}')
        return MARK in found and '\\"' not in found

    @cached_property
    def _takes_tables(self) -> bool:
        return MARK in self._called_with({"k": MARK})

    def _called_with(self, arguments: Any) -> str:
        call = {**_CALL, "function": {"name": "f", "arguments": arguments}}
        return self._try([QUESTION, {**_turn("assistant", ""), "tool_calls": [call]}])
