"""Text from files, folders and the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, cast

from pydantic import Field, field_validator

from kdcore import Data, Row, Rows, RunError, Stage, component, hookimpl, stream_texts
from kdcore_text.formats import Format
from kdcore_text.record import refuse_own_columns
from kdcore_text.splits import Splits
from kdcore_text.texts import Texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Text"]


@component
class Text(Data):
    """Documents from a file, a folder, several of them, or a data set on the Hugging Face hub.

    `path` is what to read: plain text, JSON, JSON lines, CSV, TSV, parquet or Arrow files,
    compressed or not; `*` matches names. The file ending determines the format, unless `format` is
    given. `config`, `split` and the text `column` apply to data sets. `validation` is another path,
    or the name of a split (default: the split "validation"); `validation_share` holds out that
    share of the documents instead, always the same ones. `fraction` is the share of the documents
    to train on, `skip` the share to leave out before them. In plain text, documents are separated
    by blank lines, or by lines equal to `separator`; "\\n" makes each line a document. With
    `streaming`, documents are read and tokenised during training, shuffled within `buffer` rows,
    and not stored; the recipe then sets `steps`. `keep_columns` of the records are kept with their
    documents.
    """

    name = "text"
    path: str | list[str]
    config: str | None = None
    split: str = "train"
    validation: str | None = None
    validation_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    column: str = "text"
    format: Format | None = None
    separator: str | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    skip: Annotated[float, Field(ge=0, lt=1)] = 0.0
    streaming: bool = False
    buffer: Annotated[int, Field(ge=1)] = 4096
    keep_columns: Annotated[
        list[str], Field(description="of the records, for `where` and reports")
    ] = Field(default_factory=list)

    @field_validator("keep_columns")
    @classmethod
    def _are_the_files(cls, keep: list[str]) -> list[str]:
        refuse_own_columns(keep)
        return keep

    def __post_init__(self) -> None:
        if self.validation is not None and self.validation_share is not None:
            raise ValueError("validation and validation_share exclude each other")

    @property
    def streams(self) -> bool:  # type: ignore[override]  # a constant of other data
        """The option `streaming`."""
        return self.streaming

    def faults(self, recipe: Stage) -> Iterator[str]:
        """Require a validation split for files, and `steps` for streams."""
        yield from self._splits.faults()
        if self.streaming and recipe.data is self and recipe.train.steps is None:
            yield "the length of a stream is unknown: set train.steps instead of epochs or tokens"
        if self.streaming and (self.skip or self.fraction < 1):
            yield "fraction and skip are shares of documents that a stream does not count"

    def column_names(self) -> Sequence[str]:
        """The kept ones."""
        return self.keep_columns

    def missing(self) -> Iterator[str]:
        """Paths that do not exist, and folders without the files of a split."""
        return self._splits.missing()

    def make_rows(
        self, split: str, tokenizer: PreTrainedTokenizerBase, *, seed: int, epoch: int
    ) -> Rows:
        """Stored rows, or a stream."""
        if self.streaming:
            return stream_texts(self, split, tokenizer, window=self.buffer)
        return super().make_rows(split, tokenizer, seed=seed, epoch=epoch)

    def texts(self, split: str) -> Iterable[str]:
        """The non-blank documents of "train" or "validation", in order."""
        if self.keep_columns:
            return super().texts(split)
        return cast("Iterable[str]", self._filled(split))

    def documents(self, split: str) -> Iterable[str | Row]:
        """The documents with their kept columns, if any."""
        return self._filled(split) if self.keep_columns else self.texts(split)

    def _filled(self, split: str) -> Iterable[str | Row]:
        if self.streaming:
            return self._splits.stream(split)
        return self._non_blank(split)

    def _non_blank(self, split: str) -> Iterator[str | Row]:
        found = False
        for document in self._splits.of(split):
            if (document if isinstance(document, str) else document["text"]).strip():
                found = True
                yield document
        if not found:
            raise RunError(self._splits.nothing(split, "text"))

    def fingerprint(self) -> str:
        """The options, and the content of local files."""
        options = super().fingerprint().replace(", keep_columns=[]", "")  # as before it existed
        return f"{options} {self._splits.content()}"

    @cached_property
    def _splits(self) -> Splits[str | Row]:
        keep = self.keep_columns
        return Splits(
            Texts(self.config, self.column, self.separator, self.format, self.streaming, keep),
            path=self.path,
            split=self.split,
            validation=self.validation,
            validation_share=self.validation_share,
            fraction=self.fraction,
            skip=self.skip,
            streaming=self.streaming,
        )


@hookimpl
def kdcore_data() -> Sequence[type[Data]]:
    """The data `text`."""
    return [Text]
