"""Chat templates: the tokenizer's own, those that are built in, and any other Jinja text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kdcore import RunError
from kdcore_sft.formats import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUILT_IN: Mapping[str, str] = {
    "plain": """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'user' -%}{{ 'User:\\n' + message['content'] + '\\n\\n' }}
{%- else -%}{{ 'Assistant:\\n' + message['content'] + end }}
{%- if not loop.last -%}{{ '\\n\\n' }}{%- endif -%}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:\\n' }}{%- endif -%}""",
    "chatml": """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}""",
}
_MARKS = ("<|im_start|>", "<|im_end|>")
_TOKENS = {f"{name}_token": "" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}


class Template:
    """A chat template with the special tokens that it may write.

    `ends` are the texts that may end a turn; `end` is what the template "plain" ends one with.
    """

    def __init__(
        self, text: str, tokens: Mapping[str, str], ends: Sequence[str] = (), end: str = ""
    ) -> None:
        self.text, self.ends = text, ends
        self.variables = {**_TOKENS, **tokens, "end": end}

    def render(self, messages: Sequence[Message], where: str, *, header: bool = False) -> str:
        """The dialogue as text. `header`: with the beginning of the assistant's next turn."""
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        dialogue: Any = [dict(message) for message in messages]
        options: dict[str, Any] = {"add_generation_prompt": header, **self.variables}
        try:
            rendered: Any = render_jinja_template([dialogue], chat_template=self.text, **options)
        # A template is a program of its author's, and may fail like any.
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise RunError(f"{where}: the chat template refuses it: {error}") from None
        text: str = rendered[0][0]
        return text

    @cached_property
    def has_header(self) -> bool:
        """Whether it knows how to begin the assistant's turn."""
        question = [{"role": "user", "content": "x"}]
        without, with_header = (
            self.render(question, "a question", header=header) for header in (False, True)
        )
        return without != with_header


def template_of(
    given: str | None, tokenizer: PreTrainedTokenizerBase, *, eos: bool = True
) -> Template:
    """The template of a tokenizer, or the one given in its place."""
    if given is None and not tokenizer.chat_template:
        raise RunError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template; set "
            'template = "plain", "chatml" or a Jinja text in [data]'
        )
    added = [each.content for each in tokenizer.added_tokens_decoder.values()]
    if given == "chatml" and not set(_MARKS) <= set(added):
        raise RunError(
            f"the tokenizer {tokenizer.name_or_path!r} lacks {' and '.join(_MARKS)}, which the "
            'template "chatml" is made of; set template = "plain" in [data]'
        )
    text = tokenizer.get_chat_template() if given is None else BUILT_IN.get(given, given)
    tokens = {key: str(token) for key, token in tokenizer.special_tokens_map.items()}
    end = tokens.get("eos_token", "")
    # A bos begins the next turn, unless it is the eos too.
    ends = {*added, *tokens.values()} - {tokens.get("bos_token")} | {end}
    longest_first = sorted((each for each in ends if each.strip()), key=len, reverse=True)
    return Template(text, tokens, longest_first, end if eos else "")


def bare(given: str | None) -> Template:
    """The template without a tokenizer: "plain" in place of a tokenizer's own."""
    return Template(BUILT_IN.get(given or "plain", given or ""), {})
