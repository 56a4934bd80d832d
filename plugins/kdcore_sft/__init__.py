"""Instructions and dialogues: prompts are read, answers are trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated

from kdcore_text.record import check_kept, kept_of, refuse_own_columns
from kdcore_text.records import Record
from kdcore_text.splits import Splits
from pydantic import Field, field_validator

from kdcore import Data, RunError, component, hookimpl
from kdcore_sft.dialogues import Dialogues
from kdcore_sft.formats import Dialogue, dialogue_of
from kdcore_sft.records import OF_MESSAGES, OF_RECORDS, ChatRecords, Fields
from kdcore_sft.retelling import DIALOGUE, Answered, Reteller, Told
from kdcore_sft.templates import template_of

MESSAGES = "messages"  # the column of the dialogue itself

__all__ = [
    "DIALOGUE",
    "Answered",
    "Dialogue",
    "Dialogues",
    "Reteller",
    "Sft",
    "Told",
    "dialogue_of",
    "template_of",
]


@component
class Sft(Dialogues):
    """Records of instruction, input and output, of prompt and completion, or of chat messages.

    Reads JSON, JSONL and parquet files, folders, and data sets on the Hugging Face hub; the kind of
    record is detected from its names. `path`, `config`, `split`, `validation`, `validation_share`,
    `fraction` and `skip` are those of the data "text".

    `template` is "plain", "chatml" or a Jinja text (default: the tokenizer's own chat template).
    `system` is added to dialogues without a system turn. `train_on` "last" trains on the last
    answer only. Each answer is trained with the token that ends its turn; if the template writes
    none after the last one, `eos` appends the tokenizer's. Dialogues longer than `block` lose
    prompt text first, at the `cut` side ("right" or "left").

    `chat_template_kwargs` are template variables, such as `{enable_thinking = false}`; a record's
    own values override them. A dialogue begins as its template writes it; with `bos` true, or
    "auto" and a built-in template, the tokenizer's bos is added if missing. `fields` maps names to
    those in the files, as in `{instruction = "question", output = "answer"}`: ours on the left, the
    files' on the right, with dots for nested records. `keep_columns`, by the files' names, are kept
    with their dialogues; "messages" is the dialogue itself as JSON, whatever the files call it.
    """

    name = "sft"
    path: str | list[str]
    config: str | None = None
    split: str = "train"
    validation: str | None = None
    validation_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    skip: Annotated[float, Field(ge=0, lt=1)] = 0.0
    fields: dict[str, str] = Field(default_factory=dict)
    keep_columns: Annotated[
        list[str], Field(description="of the records, for `where` and reports")
    ] = Field(default_factory=list)

    @field_validator("keep_columns")
    @classmethod
    def _are_the_files(cls, keep: list[str]) -> list[str]:
        refuse_own_columns(keep)
        return keep

    @field_validator("fields")
    @classmethod
    def _are_ours(cls, fields: dict[str, str]) -> dict[str, str]:
        known = (*OF_RECORDS, *OF_MESSAGES)
        unknown = [name for name in fields if name not in known]
        if unknown:
            raise ValueError(
                f"{', '.join(unknown)}: names on the left are those of sft, which are "
                f"{', '.join(known)}"
            )
        return fields

    def __post_init__(self) -> None:
        if self.validation is not None and self.validation_share is not None:
            raise ValueError("validation and validation_share exclude each other")

    def faults(self, recipe: object) -> Iterator[str]:
        """Require a validation split, which files do not have."""
        return self._splits.faults()

    def column_names(self) -> Sequence[str]:
        """The kept ones, and the dialogue itself if a teacher needs it."""
        return [*self.keep_columns, *({DIALOGUE} & self.asked_columns)]

    def missing(self) -> Iterator[str]:
        """Paths that do not exist, and folders without the files of a split."""
        return self._splits.missing()

    def dialogues(self, split: str) -> Iterator[Dialogue]:
        """The records of "train" or "validation" as dialogues."""
        fields, keep, there = Fields(self.fields), self.keep_columns, dict[str, None]()
        read = False
        for record in self._splits.of(split):
            made = dialogue_of(fields.of(record), self.system)
            if keep:
                there.update(dict.fromkeys([*record.values, MESSAGES]))
                columns = kept_of(record.values, [k for k in keep if k != MESSAGES], record.where)
                if MESSAGES in keep:
                    columns[MESSAGES] = json.dumps(made.messages, ensure_ascii=False)
                made = replace(made, columns=columns)
            read = True
            yield made
        if not read:
            raise RunError(self._splits.nothing(split, "records"))
        fields.check(split)
        if there:
            check_kept(keep, there, f"the {split!r} split")

    def fingerprint(self) -> str:
        """The options, and the content of local files."""
        options = super().fingerprint()
        for unused in (", fields={}", ", keep_columns=[]"):  # as before they existed
            options = options.replace(unused, "")
        return f"{options} {self._splits.content()}"

    @cached_property
    def _splits(self) -> Splits[Record]:
        return Splits(
            ChatRecords(self.config),
            path=self.path,
            split=self.split,
            validation=self.validation,
            validation_share=self.validation_share,
            fraction=self.fraction,
            skip=self.skip,
        )


@hookimpl
def kdcore_data() -> Sequence[type[Data]]:
    """The data `sft`."""
    return [Sft]
