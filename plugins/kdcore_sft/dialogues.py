"""Data that is dialogues: which of their tokens are learned, and how they become rows."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import field_validator

from kdcore import Data, Row, Rows, RunError, component, lay_documents, of_tokenizer
from kdcore_sft.answers import answered, rendered
from kdcore_sft.cutting import Cutter
from kdcore_sft.formats import Dialogue
from kdcore_sft.masking import Document, check_tokenizer, documents
from kdcore_sft.templates import BUILT_IN, Template, bare, template_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger("kdcore")
_AT_ONCE = 256  # dialogues that are handed to a tokenizer at once


@component
class Dialogues(Data):
    """Dialogues of which the assistant's answers are learned. Subclasses say where they come from.

    `template` is the tokenizer's own chat template, "plain", "chatml" or a Jinja text. `system` is
    put before dialogues without a system turn. `train_on` "last" learns the last answer only. Each
    answer is learned with the token that ends its turn; where the template writes none after the
    last one, `eos` appends the tokenizer's. Dialogues longer than `block` lose text of the prompt
    first, at its `cut` side ("right" or "left").
    """

    template: str | None = None
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
                '"split" would part an answer from its question; possible are "left" and "right", '
                "the side at which the text of a prompt is cut"
            )
        return cut

    @field_validator("template")
    @classmethod
    def _is_template(cls, template: str | None) -> str | None:
        if template is not None and template not in BUILT_IN and not re.search("{[{%]", template):
            built_in = ", ".join(map(repr, BUILT_IN))
            raise ValueError(f"{template!r} is no Jinja text, nor one of {built_in}")
        return template

    def dialogues(self, split: str) -> Iterable[Dialogue]:
        """The dialogues of "train" or "validation", in order, the same ones each time."""
        raise NotImplementedError

    def texts(self, split: str) -> Iterator[str]:
        """The dialogues as text, without special tokens that only a tokenizer knows."""
        template = bare(self.template)
        for each in self.dialogues(split):
            yield template.render(each.messages, each.where)

    def make_rows(
        self, split: str, tokenizer: PreTrainedTokenizerBase, *, seed: int, epoch: int
    ) -> Rows:
        """Each dialogue in one row, its answers alone learned; several in a row are isolated."""
        check_tokenizer(tokenizer)
        template = template_of(self.template, tokenizer, eos=self.eos)
        maker = _Maker(self, split, tokenizer, template)
        rows = lay_documents(self, split, maker.rows, key=maker.key)
        maker.tell()
        return rows


@dataclass
class _Counts:
    dialogues: int = 0
    cut: int = 0
    in_answer: int = 0
    dropped: int = 0


@dataclass
class _Maker:
    """Makes documents of dialogues, and counts what becomes of them."""

    data: Dialogues
    split: str
    tokenizer: PreTrainedTokenizerBase
    template: Template
    counts: _Counts = field(default_factory=_Counts)

    def __post_init__(self) -> None:
        data, template = self.data, self.template
        options = [data.train_on, data.eos, data.block, data.cut, template.text]
        made_with = [1, options, template.variables, of_tokenizer(self.tokenizer)]
        hashed = blake2b(json.dumps(made_with).encode(), digest_size=16)
        for each in data.dialogues(self.split):
            hashed.update(json.dumps(each.messages).encode())
            self.counts.dialogues += 1
        if not self.counts.dialogues:
            raise RunError(f"data {data.name!r} has no dialogues in its {self.split!r} split")
        self.key = hashed.hexdigest()

    def rows(self) -> Iterator[Row]:
        """The documents as rows of ids and labels."""
        self.counts = _Counts()
        dialogues = iter(self.data.dialogues(self.split))
        while some := list(islice(dialogues, _AT_ONCE)):
            self.counts.dialogues += len(some)
            with_answer = list(filter(None, map(_up_to_answer, some)))
            for dialogue, document in zip(with_answer, self._encoded(with_answer), strict=True):
                yield self._fitting(dialogue, document).row()
            self.counts.dropped += len(some) - len(with_answer)
        if self.counts.dropped == self.counts.dialogues:
            raise RunError(
                f"none of the {self.counts.dialogues:,} dialogues in the {self.split!r} split of "
                f"data {self.data.name!r} has an answer to learn"
            )
        beside = self._counted.with_suffix(f".{os.getpid()}")
        beside.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(asdict(self.counts)))
        beside.replace(self._counted)

    def tell(self) -> None:
        """One line on what became of the dialogues."""
        if self._counted.exists():  # else it was thrown away, and the rows were not
            self.counts = _Counts(**json.loads(self._counted.read_text()))
        counts = self.counts
        said = f"{self.split}: of {counts.dialogues:,} dialogues {counts.cut:,} were cut to "
        said += f"{self.data.block} tokens, {counts.in_answer:,} of these in an answer; "
        _log.info(f"{said}{counts.dropped:,} without an answer were left out")

    @property
    def _counted(self) -> Path:
        """Beside the rows that the counts are of: those are made once."""
        import datasets

        return Path(datasets.config.HF_DATASETS_CACHE) / f"kdcore-dialogues-{self.key}.json"

    def _encoded(self, dialogues: Sequence[Dialogue]) -> list[Document]:
        texts = [rendered(each, self.template, self.data.train_on) for each in dialogues]
        return documents(texts, self.tokenizer, eos=self.data.eos) if texts else []

    def _one(self, dialogue: Dialogue) -> Document:
        return self._encoded([dialogue])[0]

    def _fitting(self, dialogue: Dialogue, document: Document) -> Document:
        data = self.data
        if len(document) <= data.block:
            return document
        whole = document.without_rest()
        if len(whole) <= data.block:
            return whole
        assert data.cut != "split"
        cutter = Cutter(self.template, self._one, data.block, data.cut, data.train_on)
        cut = cutter.cut(dialogue)
        self.counts.cut += 1
        self.counts.in_answer += int(cut.trained.sum() < whole.trained.sum())
        return cut


def _up_to_answer(dialogue: Dialogue) -> Dialogue | None:
    """Up to the last answer that says something, if one does."""
    turns = answered(dialogue.messages)
    return replace(dialogue, messages=dialogue.messages[: turns[-1] + 1]) if turns else None
