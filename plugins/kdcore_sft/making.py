"""Make documents from dialogues, and count and report what was cut or dropped."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcore import Row, RunError, bos_of, tokenizer_hash
from kdcore_sft.answers import Rendered, answered, rendered
from kdcore_sft.cutting import Cutter
from kdcore_sft.formats import Dialogue
from kdcore_sft.marks import Marks
from kdcore_sft.masking import Document, document, documents
from kdcore_sft.messages import REASONING, thoughts_of
from kdcore_sft.retelling import DIALOGUE, dialogue_record
from kdcore_sft.templates import BUILT_IN, Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kdcore_sft.options import DialogueOptions

_log = logging.getLogger("kdcore")
_AT_ONCE = 256  # dialogues passed to the tokenizer at once
_LITTLE = 1 / 8  # of the prompt's texts
_MATTERS = {"tools", "documents", "tool_calls", *REASONING}


@dataclass
class _Counts:
    dialogues: int = 0
    cut: int = 0
    in_answer: int = 0
    dropped: int = 0
    little: int = 0  # dialogues with almost no prompt left
    spelled: int = 0  # dialogues with special tokens in their texts
    mark: str = ""  # one of these tokens
    thoughts: int = 0  # answers with reasoning
    lost: int = 0  # of these, reasoning that the template drops
    unread: dict[str, int] = field(default_factory=dict)  # records per unused key
    complete: bool = False  # all of the above are final


@dataclass
class Maker:
    """Makes documents of dialogues, and counts what was cut or dropped."""

    data: DialogueOptions
    split: str
    tokenizer: PreTrainedTokenizerBase
    template: Template
    counts: _Counts = field(default_factory=_Counts)

    def __post_init__(self) -> None:
        data, template = self.data, self.template
        self._marks = Marks(self.tokenizer, template)
        as_written = data.bos == "auto" and data.template not in BUILT_IN
        self._bos = [] if as_written else bos_of(data, self.tokenizer)
        options = [self._bos, data.train_on, data.eos, data.block, data.cut, data.special_tokens]
        texts = [each.text for each in (template, template.for_tools) if each is not None]
        made_with = [
            3 if self._marks.words else 2,
            options,
            texts,
            template.tokens,
            template.options,
        ]
        hashed = blake2b(digest_size=16)
        hashed.update(json.dumps([*made_with, tokenizer_hash(self.tokenizer)]).encode())
        if DIALOGUE in data.asked_columns:
            hashed.update(b"dialogue 1")
        for each in data.dialogues(self.split):
            hashed.update(json.dumps([each.messages, template.of(each).given(each)]).encode())
            if each.columns:
                hashed.update(json.dumps(["columns", each.columns], sort_keys=True).encode())
            self.counts.dialogues += 1
        if not self.counts.dialogues:
            raise RunError(f"data {data.name!r} has no dialogues in its {self.split!r} split")
        self.key = hashed.hexdigest()

    def rows(self) -> Iterator[Row]:
        """The documents as rows of ids and labels."""
        self.counts = _Counts()
        keys = Counter[str]()
        dialogues = iter(self.data.dialogues(self.split))
        while some := list(islice(dialogues, _AT_ONCE)):
            self.counts.dialogues += len(some)
            keys.update(key for each in some for key in _keys(each))
            with_answer = [self._masked(each) for each in filter(None, map(_up_to_answer, some))]
            for dialogue, made in zip(with_answer, self._encoded(with_answer), strict=True):
                fitting, shortened = self._fitting(dialogue, made)
                columns = self._columns(fitting, shortened)
                yield {**fitting.row(), "columns": columns} if columns else fitting.row()
            self.counts.dropped += len(some) - len(with_answer)
        if self.counts.dropped == self.counts.dialogues:
            raise RunError(
                f"none of the {self.counts.dialogues:,} dialogues in the {self.split!r} split of "
                f"data {self.data.name!r} has an answer to learn: they are empty, or weight and "
                'train say no; if they go by another name, set fields = {output = "NAME"} in [data]'
            )
        templates = [each for each in (self.template, self.template.for_tools) if each is not None]
        read = {key for each in templates for key in (*each.read, *each.reads)}
        self.counts.unread = {key: count for key, count in keys.items() if key not in read}
        self._keep_counts()

    def tell(self) -> None:
        """Report what became of the dialogues, and store the counts."""
        self.counts = self._kept_counts() or self.counts
        counts, split = self.counts, self.split
        self._tell_unread()
        if counts.lost:
            _log.warning(
                f"{split}: the chat template leaves out the thoughts before {counts.lost:,} of "
                f"{counts.thoughts:,} answers, so these are learned without them; if it keeps "
                'those before the last answer, train_on = "last" in [data] trains on that answer '
                "only"
            )
        if counts.spelled:
            self._tell_spelled()
        if counts.little:
            _log.warning(
                f"{split}: {counts.little:,} of {counts.dialogues:,} dialogues "
                f"({counts.little / counts.dialogues:.1%}) keep less than an eighth of the text of "
                f"their prompt, as there is no room for it: raise block (now {self.data.block}) in "
                "[data]"
            )
        if not counts.complete:
            _log.info(f"{split}: {counts.dialogues:,} dialogues, tokenised before")
            return
        said = f"{split}: of {counts.dialogues:,} dialogues {counts.cut:,} were cut to "
        said += f"{self.data.block} tokens, {counts.in_answer:,} of these in an answer; "
        _log.info(f"{said}{counts.dropped:,} without an answer were left out")

    def _tell_unread(self) -> None:
        unread = self.counts.unread
        if unread:
            named = ", ".join(
                f"{key} ({count:,} record{'s' * (count > 1)})" for key, count in unread.items()
            )
            level = logging.WARNING if unread.keys() & _MATTERS else logging.INFO
            _log.log(level, f"{self.split}: the chat template does not read {named}")

    def _tell_spelled(self) -> None:
        counts = self.counts
        said = f"{self.split}: {counts.spelled:,} of {counts.dialogues:,} dialogues spell out "
        said += f"special tokens, such as {counts.mark}, in their texts; "
        if self.data.special_tokens == "text":
            said += 'they stay text (special_tokens = "parse" in [data] makes tokens of them)'
        else:
            said += 'they become tokens, as special_tokens = "parse" says'
        _log.warning(said)

    def _keep_counts(self) -> None:
        self.counts.complete = True
        partial = self._counted.with_suffix(f".{os.getpid()}")
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(asdict(self.counts)))
        partial.replace(self._counted)

    def _kept_counts(self) -> _Counts | None:
        """The counts of rows made earlier; the file may have been deleted since."""
        try:
            return _Counts(**json.loads(self._counted.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def _counted(self) -> Path:
        """A file next to the rows it describes, which are made once."""
        import datasets

        return Path(datasets.config.HF_DATASETS_CACHE) / f"kdcore-dialogues-{self.key}.json"

    def _masked(self, dialogue: Dialogue) -> Dialogue:
        """The dialogue with its special tokens masked, if they are to stay text."""
        found = self._marks.found(dialogue)
        if found:
            self.counts.spelled += 1
            self.counts.mark = self.counts.mark or found[0]
        return self._marks.hidden(dialogue) if self.data.special_tokens == "text" else dialogue

    def _encoded(self, dialogues: Sequence[Dialogue]) -> list[Document]:
        texts = [rendered(each, self.template, self.data.train_on) for each in dialogues]
        for dialogue, text in zip(dialogues, texts, strict=True):
            self._count_thoughts(dialogue, text)
        at_once = [text for each, text in zip(dialogues, texts, strict=True) if not each.spelled]
        bos, eos = self._bos, self.data.eos
        made = iter(documents(at_once, self.tokenizer, bos=bos, eos=eos))
        return [
            document(text, self._marks, self.tokenizer, bos=bos, eos=eos)
            if dialogue.spelled
            else next(made)
            for dialogue, text in zip(dialogues, texts, strict=True)
        ]

    def _count_thoughts(self, dialogue: Dialogue, text: Rendered) -> None:
        turns = answered(dialogue.messages)[-len(text.answers) :]
        for turn, answer in zip(turns, text.answers, strict=True):
            thoughts = thoughts_of(dialogue.messages[turn])
            if thoughts:
                self.counts.thoughts += 1
                self.counts.lost += thoughts not in text.text[answer.start : answer.stop]

    def _one(self, dialogue: Dialogue) -> Document:
        return self._encoded([dialogue])[0]

    def _columns(self, made: Document, dialogue: Dialogue) -> Mapping[str, Any]:
        """The kept columns, and the dialogue itself if required."""
        if DIALOGUE not in self.data.asked_columns:
            return dialogue.columns
        known = dialogue_record(dialogue, made, self.template, self._marks, self.data.train_on)
        return {**dialogue.columns, DIALOGUE: known.to_text()}

    def _fitting(self, dialogue: Dialogue, made: Document) -> tuple[Document, Dialogue]:
        data = self.data
        if len(made) <= data.block:
            return made, dialogue
        whole = made.without_rest()
        if len(whole) <= data.block:
            return whole, dialogue
        assert data.cut != "split"
        cutter = Cutter(self.template, self._one, data.block, data.cut, data.train_on)
        cut = cutter.cut(dialogue)
        self.counts.cut += 1
        self.counts.little += cut.left < _LITTLE
        self.counts.in_answer += int(cut.document.trained.sum() < whole.trained.sum())
        return cut.document, cut.dialogue


def _up_to_answer(dialogue: Dialogue) -> Dialogue | None:
    """The dialogue up to its last trained answer, if it has one."""
    turns = answered(dialogue.messages)
    return replace(dialogue, messages=dialogue.messages[: turns[-1] + 1]) if turns else None


def _keys(dialogue: Dialogue) -> set[str]:
    """The keys of a record other than roles and contents."""
    of_turns = {key for each in dialogue.messages for key in each}
    return {*dialogue.given, *of_turns} - {"role", "content", "train", *dialogue.columns}
