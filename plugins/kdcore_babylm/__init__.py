"""The BabyLM corpora: 10M or 100M words of text that a child may hear or read."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from kdcore_text.opening import lines
from kdcore_text.sources import content

from kdcore import Data, Rows, RunError, component, hookimpl, pack_texts
from kdcore_babylm.corpora import absent, files_here, files_of, source_of
from kdcore_babylm.sources import SOURCES, UNKNOWN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["BabyLM"]

_log = logging.getLogger("kdcore")
_HELD_OUT = ("dev", "test")


@component
class BabyLM(Data):
    """A folder of the BabyLM challenge, with one file per source, such as childes.train.

    `path` may also be a data set on the hub: OWNER/NAME or OWNER/NAME/FOLDER. `validation` is
    another path, or the ending of other files in the same one, "dev" or "test" (default: the .dev
    files in `path`). `clean` removes noise by rules for each source. A document, followed by an
    eos, is an article, book or talk if the file marks their beginnings (a title = = = X = = =, or a
    blank line in bnc_spoken and simple_wiki); otherwise it is the file, in parts of a million
    characters. `random_offset`, with rows = "chunk", changes the cuts each epoch: "epoch" (or true)
    shifts all cuts by one random offset, "chunk" draws an offset for each row.
    """

    name = "babylm"
    path: str
    validation: str | None = None
    clean: bool = True
    random_offset: bool | Literal["epoch", "chunk"] = False

    def __post_init__(self) -> None:
        if self.random_offset and self.rows != "chunk":
            raise ValueError('random_offset is for rows = "chunk"')
        self._reported = set[str]()

    @property
    def fresh_each_epoch(self) -> bool:  # type: ignore[override]  # a constant of other data
        """Whether rows change with the epoch."""
        return bool(self.random_offset)

    def texts(self, split: str) -> Iterator[str]:
        """The documents of "train" or "validation", file by file in alphabetical order."""
        sizes = dict[str, tuple[int, int]]()
        for file in self._files(split):
            name = source_of(file)
            source = SOURCES.get(name, UNKNOWN)
            before = after = 0
            for document in source.documents(lines(file)):
                text = source.cleaned(document) if self.clean else document
                before, after = before + len(document), after + len(text)
                if text:
                    yield text
            sizes[name] = (before, after)
        self._report(split, sizes)

    def make_rows(
        self, split: str, tokenizer: PreTrainedTokenizerBase, *, seed: int, epoch: int
    ) -> Rows:
        """Rows with start positions drawn from seed and epoch; validation rows are fixed."""
        if not self.random_offset or split != "train":
            return pack_texts(self, split, tokenizer)
        if self.random_offset == "chunk":
            return pack_texts(self, split, tokenizer, shifts=np.random.default_rng([seed, epoch]))
        start = random.Random(f"{seed} {epoch}").randrange(self.block)
        return pack_texts(self, split, tokenizer, start=start)

    def missing(self) -> Iterator[str]:
        """Folders that do not exist and cannot be hub names."""
        folders = [self.path, *([self.validation] if self.validation not in _HELD_OUT else [])]
        yield from filter(None, (absent(folder) for folder in folders if folder is not None))

    def fingerprint(self) -> str:
        """The options, and the content of local files."""
        files = [*files_here(self.path), *files_here(self.validation)]
        return f"{super().fingerprint()} {content([str(file) for file in files])}"

    def _files(self, split: str) -> Sequence[Path]:
        training = files_of(self.path, ["train"])
        if split == "train":
            return training
        found = files_of(*self._where_to_validate())
        if found == training:
            raise RunError(
                f"{self.path} has nothing to validate on apart from the training text; set "
                "data.validation to the folder of the *.dev files"
            )
        return found

    def _where_to_validate(self) -> tuple[str, Sequence[str]]:
        if self.validation is None:
            return self.path, _HELD_OUT
        if self.validation in _HELD_OUT and not os.path.exists(self.validation):
            return self.path, [self.validation]
        return self.validation, _HELD_OUT

    def _report(self, split: str, sizes: dict[str, tuple[int, int]]) -> None:
        """Report once per split what cleaning removed, and which sources have no rules."""
        if not self.clean or split in self._reported:
            return
        self._reported.add(split)
        each = ", ".join(f"{name} {a:,} -> {b:,}" for name, (a, b) in sizes.items())
        _log.info(f"{split}: characters before and after cleaning: {each}")
        for name in sizes.keys() - SOURCES.keys():
            _log.info(
                f"{split}: no rules are known for {name!r} (they are for {', '.join(SOURCES)}): "
                "only its spaces, quotes and blank lines were cleaned"
            )


@hookimpl
def kdcore_data() -> Sequence[type[Data]]:
    """The data `babylm`."""
    return [BabyLM]
