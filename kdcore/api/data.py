"""What a student trains on: documents, the tokenizer, and completions generated during a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from kdcore.api.component import AnyRun, Component, component
from kdcore.api.options import names_on_hub, of_options
from kdcore.api.train_options import NotNegative

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kdcore.data.batch import Row, Rows
    from kdcore.models.completions import Completion, Prompt


def _text_of(document: str | Row) -> str | None:
    return document if isinstance(document, str) else document.get("text")


@component
class Data(Component):
    """Text for training and validation, arranged in rows of at most `block` tokens.

    `rows`: "pack" puts several whole documents into a row, isolated from each other, "chunk" cuts
    the concatenated documents into rows, "one" gives each document a row. `cut`: a document that is
    longer than a row loses its end ("right") or its start ("left"), or is cut into pieces
    ("split"). `eos`: each document ends with the tokenizer's end token.
    """

    component_kind: ClassVar[str] = "data"
    block: Annotated[int, Field(ge=2)] = 512
    rows: Literal["pack", "chunk", "one"] = "pack"
    cut: Literal["left", "right", "split"] = "right"
    bos: Annotated[
        Literal["auto"] | bool, Field(description="begins a document; auto: as the tokenizer does")
    ] = "auto"
    eos: bool = True
    special_tokens: Annotated[
        Literal["text", "parse"],
        Field(description="what those are that a document spells out: text, or tokens"),
    ] = "text"
    fresh_each_epoch: ClassVar[bool] = False
    streams: ClassVar[bool] = False  # True: training rows come one by one, uncounted
    asked_columns: ClassVar[frozenset[str]] = frozenset()  # the recipe's `optional_columns`

    def texts(self, split: str) -> Iterable[str]:
        """The texts of "train" or "validation", in order. Tokenizers train on them too.

        Defaults to the texts of `documents`, where that is overridden.
        """
        if type(self).documents is Data.documents:
            raise NotImplementedError
        return (text for text in map(_text_of, self.documents(split)) if text is not None)

    def documents(self, split: str) -> Iterable[str | Row]:
        """The documents of a split with their columns. Defaults to `texts`, without columns.

        A document is a text, or a mapping with `text`, or with `input_ids` that are used unchanged,
        and `columns`: name -> text or number. Dropping a document drops its columns.
        """
        return self.texts(split)

    def column_names(self) -> Sequence[str] | None:
        """The columns that documents may have; None: unknown until the documents are read.

        Defaults to none where neither `documents` nor `make_rows` is overridden.
        """
        own = (type(self).documents, type(self).make_rows)
        return () if own == (Data.documents, Data.make_rows) else None

    def make_rows(
        self, split: str, tokenizer: PreTrainedTokenizerBase, *, seed: int, epoch: int
    ) -> Rows:
        """The rows of a split. By default tokenises the texts (cached on disk) and arranges them
        according to the option `rows`.

        "pack" puts several whole documents into a row, isolated from each other; longer ones are
        cut into isolated pieces. "chunk" cuts the concatenated split into rows. "one" gives each
        document a row, and cuts long ones at `cut`.
        """
        from kdcore.data.rows import pack_texts

        return pack_texts(self, split, tokenizer)

    def fingerprint(self) -> str:
        """Name and options; `bos` and `special_tokens` only with values other than the default."""
        chosen = {"bos": self.bos != "auto", "special_tokens": self.special_tokens != "text"}
        return of_options(self, without=[name for name, is_ in chosen.items() if not is_])

    def names_on_hub(self) -> Iterable[str]:
        """The hub data sets that it reads, for the model card. Defaults to those in its options."""
        return names_on_hub(self)


class Tokenizer(Component):
    """The source of the student's tokenizer."""

    component_kind: ClassVar[str] = "tokenizer"

    def load(self, run: AnyRun, data: Data) -> PreTrainedTokenizerBase:
        """Load or train it. The run folder keeps the result; a resumed run does not call this."""
        raise NotImplementedError


@component
class Rollout(Component):
    """`[rollout]`: generates completions for the share of rows that trains on generated text."""

    component_kind: ClassVar[str] = "rollout"
    max_new_tokens: Annotated[int, Field(ge=1, description="of an answer; longer ones are cut")] = (
        128
    )
    temperature: Annotated[NotNegative, Field(description="0 takes the likeliest token")] = 1.0
    top_k: Annotated[int, Field(ge=0, description="only the k likeliest; 0: all")] = 0
    top_p: Annotated[
        float, Field(gt=0, le=1, description="only the likeliest that have this much together")
    ] = 1.0

    def generate(
        self, run: AnyRun, prompts: Sequence[Prompt]
    ) -> Sequence[Completion | Sequence[Completion]]:
        """One completion per prompt, in order, or a sequence of completions for a prompt.

        Called between steps, for a group of prompts on one process: without gradient, the student
        in evaluation mode. Draw from each prompt's seed, so that neither the number of processes
        nor a restart changes the result. Completions without ids are dropped.
        """
        raise NotImplementedError

    def generated(self, run: AnyRun, step: int, completions: Sequence[Completion]) -> None:
        """Receives all completions of a step before it is trained on, the same on every process.

        State (`state_dict`) built only from these is identical on every process.
        """

    def needs_teacher(self) -> bool:
        """Whether `generate` uses the run's teacher; teachers passed as options do not count."""
        return False
