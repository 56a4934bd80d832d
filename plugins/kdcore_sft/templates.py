"""Chat templates: the tokenizer's own, the built-in ones, and any Jinja text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kdcore import RunError
from kdcore_sft.formats import Dialogue
from kdcore_sft.forms import QUESTION, Forms
from kdcore_sft.messages import Message

if TYPE_CHECKING:
    from jinja2 import Template as Compiled
    from transformers import PreTrainedTokenizerBase

    from kdcore_sft.sandbox import Sandbox

BUILT_IN: Mapping[str, str] = {
    "plain": """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'user' -%}{{ 'User:\\n' + message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'assistant' -%}
{{ 'Assistant:\\n' + message['content'] + end }}
{%- if not loop.last -%}{{ '\\n\\n' }}{%- endif -%}
{%- else -%}{{ raise_exception('"plain" has no turns of a ' + message['role']) }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:\\n' }}{%- endif -%}""",
    "chatml": """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}""",
}
RESERVED = ("messages", "add_generation_prompt")
"""What every template is given, and no recipe or record can set."""

NOW = "strftime_now"
"""The day that a template writes, as the recipe sets it."""

_TOOL_USE = "tool_use"  # transformers' name of the template for records with tools
_MARKS = ("<|im_start|>", "<|im_end|>")
_TOKENS = {f"{name}_token": "" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}


class Refused(RunError):
    """A template that rejects a dialogue, or fails on it."""


class Template:
    """A chat template with its special tokens.

    `ends` are the texts that may end a turn; `end` is the one that the template "plain" uses;
    `options` are the recipe's template variables. `read` collects the message keys that it has read
    so far. `for_tools` replaces it for records with tools.
    """

    for_tools: Template | None = None

    def __init__(
        self,
        text: str,
        tokens: Mapping[str, str],
        ends: Sequence[str] = (),
        end: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.text, self.ends = text, ends
        self.options = dict(options or {})
        self.tokens = {**_TOKENS, **tokens, "end": end}
        self.read = set[str]()
        self._runs_away = False

    def of(self, dialogue: Dialogue) -> Template:
        """The template for a dialogue."""
        has_tools = "tools" in dialogue.given
        return self.for_tools if self.for_tools is not None and has_tools else self

    def render(self, dialogue: Dialogue, *, header: bool = False) -> str:
        """The dialogue as text. `header`: with the generation prompt for the assistant's turn."""
        messages = [self._forms.prepared(each, dialogue.where) for each in dialogue.messages]
        return self._rendered(messages, dialogue.given, dialogue.where, header, self.read)

    @cached_property
    def reads(self) -> frozenset[str]:
        """The variables that it reads, other than turns and special tokens."""
        try:
            return self._sandbox.variables(self.text) - {*RESERVED, *self.tokens}
        except _failures() as error:
            raise Refused(f"the chat template cannot be read: {_said(error)}") from None

    @cached_property
    def looks_for(self) -> frozenset[str]:
        """The texts that it searches for in its input."""
        try:
            return self._sandbox.looked_for(self.text)
        except _failures() as error:
            raise Refused(f"the chat template cannot be read: {_said(error)}") from None

    @cached_property
    def has_header(self) -> bool:
        """Whether it has a generation prompt."""
        return self._tried([QUESTION], header=True) != self._tried([QUESTION])

    def given(self, dialogue: Dialogue) -> dict[str, Any]:
        """The dialogue's values outside of its turns that the template reads."""
        return {key: value for key, value in dialogue.given.items() if key in self.reads - {NOW}}

    def _rendered(
        self,
        messages: Sequence[Message],
        given: Mapping[str, Any],
        where: str,
        header: bool,
        read: set[str],
    ) -> str:
        from kdcore_sft.budget import Budget, RunsAway, size
        from kdcore_sft.sandbox import ReadTurn

        known = {key: value for key, value in given.items() if key in self.reads - {NOW}}
        options = {key: value for key, value in self.options.items() if key != NOW}
        variables = {"tools": None, "documents": None, **options, **known, **self.tokens}
        turns = [ReadTurn(each, read) for each in messages]
        sandbox = self._sandbox
        sandbox.budget = Budget(size([*messages, known], 1 << 30))
        try:
            variables |= {"messages": turns, "add_generation_prompt": header}
            return "".join(self._compiled.generate(variables))
        except RunsAway as error:
            raise RunsAway(
                f"{where}: the chat template {error}; set another template in [data]"
            ) from None
        except _failures() as error:
            raise Refused(f"{where}: the chat template refuses it: {_said(error)}") from None

    @cached_property
    def _forms(self) -> Forms:
        return Forms(self._tried)

    def _tried(self, messages: Sequence[Message], *, header: bool = False) -> str:
        """The rendered example, or "" if the template refuses it."""
        from kdcore_sft.budget import RunsAway

        try:
            return "" if self._runs_away else self._rendered(messages, {}, "", header, set())
        except Refused:
            return ""
        except RunsAway:  # reported for the first record
            self._runs_away = True
            return ""

    @cached_property
    def _sandbox(self) -> Sandbox:
        from kdcore_sft.sandbox import Sandbox

        return Sandbox(self._now)

    @cached_property
    def _compiled(self) -> Compiled:
        return self._sandbox.compiled(self.text)

    def _now(self, form: str) -> str:
        """The date set in the recipe: today's date would make runs of the same name differ."""
        if NOW in self.options:
            return datetime.fromisoformat(str(self.options[NOW])).strftime(form)
        today = datetime.now()
        named = "date_string" in self.reads
        said = f'date_string = "{today.strftime(form)}"' if named else f'{NOW} = "{today.date()}"'
        raise RunError(
            "the chat template writes today's date, so runs of the same recipe would differ; "
            "pin it: "
            f"set chat_template_kwargs = {{{said}}} in [data]"
        )


def _failures() -> tuple[type[BaseException], ...]:
    """The errors of templates: they are programs, and may fail in any way."""
    from jinja2 import TemplateError

    mistakes = (TypeError, ValueError, AttributeError, AssertionError, SyntaxError)
    return (TemplateError, ArithmeticError, LookupError, RecursionError, MemoryError, *mistakes)


def _said(error: BaseException) -> str:
    return str(error).split("\n")[0] or type(error).__name__


def template_of(
    given: str | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    eos: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Template:
    """The tokenizer's template, or the one given in its place."""
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
    text = _own(tokenizer) if given is None else BUILT_IN.get(given, given)
    named = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    made = [text, *([named[_TOOL_USE]] if given is None and _TOOL_USE in named else [])]
    tokens = {key: str(token) for key, token in tokenizer.special_tokens_map.items()}
    end = tokens.get("eos_token", "")
    # A bos begins the next turn, unless it is also the eos.
    ends = {*added, *tokens.values()} - {tokens.get("bos_token")} | {end}
    longest_first = sorted((each for each in ends if each.strip()), key=len, reverse=True)
    template, *more = (
        Template(each, tokens, longest_first, end if eos else "", options) for each in made
    )
    template.for_tools = more[0] if more else None
    _check_options(template)
    return template


def _own(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        text: str = tokenizer.get_chat_template()
        return text
    except ValueError:  # it has several, and no default
        names = ", ".join(tokenizer.chat_template)
        raise RunError(
            f"the tokenizer {tokenizer.name_or_path!r} has the chat templates {names} and no "
            "default; set template to the Jinja text of one in [data]"
        ) from None


def _check_options(template: Template) -> None:
    more = template.for_tools.reads if template.for_tools is not None else frozenset[str]()
    reads = template.reads | more
    unknown = [key for key in template.options if key not in reads]
    if unknown:
        known = ", ".join(sorted(reads)) or "nothing that can be set"
        raise RunError(
            f"the chat template does not read {', '.join(unknown)}, which chat_template_kwargs in "
            f"[data] sets; it reads {known}"
        )


def bare(given: str | None, options: Mapping[str, Any]) -> Template:
    """The template without a tokenizer: "plain" replaces a tokenizer's own."""
    return Template(BUILT_IN.get(given or "plain", given or ""), {}, options=options)
