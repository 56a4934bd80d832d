"""Data made of dialogues: options, and the dialogues as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Literal

from pydantic import Field, field_validator

from kdcore import Data, component
from kdcore_sft.formats import Dialogue
from kdcore_sft.templates import BUILT_IN, NOW, RESERVED, bare

_Value = bool | int | float | str | list[str] | dict[str, str]


@component
class DialogueOptions(Data):
    """The options of dialogues; see `Dialogues`."""

    template: str | None = None
    chat_template_kwargs: dict[str, _Value] = Field(default_factory=dict)
    system: str | None = None
    train_on: Literal["all", "last"] = "all"

    @field_validator("rows")
    @classmethod
    def _not_chunk(cls, rows: str) -> str:
        if rows == "chunk":
            raise ValueError(
                '"chunk" would cut between a question and its answer; possible are "pack" and "one"'
            )
        return rows

    @field_validator("cut")
    @classmethod
    def _not_split(cls, cut: str) -> str:
        if cut == "split":
            raise ValueError(
                '"split" would separate an answer from its question; possible are "left" '
                'and "right", '
                "the side at which the text of a prompt is cut"
            )
        return cut

    @field_validator("template")
    @classmethod
    def _is_template(cls, template: str | None) -> str | None:
        if template is not None and template not in BUILT_IN and not re.search("{[{%]", template):
            built_in = ", ".join(map(repr, BUILT_IN))
            raise ValueError(f"{template!r} is neither a Jinja text nor one of {built_in}")
        return template

    @field_validator("chat_template_kwargs")
    @classmethod
    def _can_be_set(cls, options: dict[str, _Value]) -> dict[str, _Value]:
        for name in RESERVED:
            if name in options:
                raise ValueError(f"{name} is what kdcore gives the template itself")
        if NOW in options:
            try:
                datetime.fromisoformat(str(options[NOW]))
            except ValueError:
                raise ValueError(f'{NOW} is a day, as in {NOW} = "2026-07-26"') from None
        return options

    def fingerprint(self) -> str:
        """Without template variables, the same as before they existed."""
        return super().fingerprint().replace(", chat_template_kwargs={}", "")

    def dialogues(self, split: str) -> Iterable[Dialogue]:
        """The dialogues of "train" or "validation", in a fixed order."""
        raise NotImplementedError

    def texts(self, split: str) -> Iterator[str]:
        """The dialogues as text, without the special tokens of a tokenizer."""
        template = bare(self.template, self.chat_template_kwargs)
        for each in self.dialogues(split):
            yield template.render(each)
