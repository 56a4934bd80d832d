"""Encoding documents as ids: their start and end, and names of special tokens in them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np

from kdcore.data.batch import TextSource
from kdcore.data.columns import to_text
from kdcore.data.special import SpecialTokens
from kdcore.data.where import column_error
from kdcore.data.windows import LONG, in_windows
from kdcore.errors import PluginError, RunError
from kdcore.hashing import tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kdcore.data.batch import Row


_log = logging.getLogger("kdcore")


def bos_of(data: TextSource, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that begin each document: with `bos = "auto"`, those that the tokenizer adds."""
    own = own_beginning(tokenizer) if data.bos else []
    if data.bos == "auto" or own or not data.bos:
        return own
    if tokenizer.bos_token_id is None:
        raise RunError(
            f"the tokenizer {tokenizer.name_or_path!r} has no beginning-of-sequence token to begin "
            "the documents with; set bos = false in [data]"
        )
    return [int(tokenizer.bos_token_id)]


def own_beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that a tokenizer puts before a text."""
    plain, special = (tokenizer.encode("a", add_special_tokens=each) for each in (False, True))
    for at in range(len(special) - len(plain) + 1):
        if special[at : at + len(plain)] == plain:
            return [int(each) for each in special[:at]]
    return []


def eos_of(data: TextSource, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end each document."""
    if not data.eos:
        return []
    if tokenizer.eos_token_id is None:
        raise RunError(
            f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token to end the "
            "documents with; set eos = false in [data]"
        )
    return [int(tokenizer.eos_token_id)]


Document = tuple[str | np.ndarray, str]
"""A text, or complete ids, and its columns in stored form."""


def documents_of(data: TextSource, split: str) -> Iterable[str | Row]:
    """The documents of a split. Data of earlier versions may have an option named `documents`."""
    documents = getattr(data, "documents", None)
    return documents(split) if callable(documents) else data.texts(split)


def pair_of(document: str | Document) -> Document:
    """A document with its columns; a plain text has none."""
    return (document, "") if isinstance(document, str) else document


def checked_document(given: object, data: TextSource, split: str) -> str | Document:
    """A document of a data component, validated; a plain text stays one."""
    if not isinstance(given, Mapping):
        utf8(given, data, split)
        return cast(str, given)
    said = f"data {data.name!r}: documents({split!r}) gave "
    columns = given.get("columns")
    if columns is not None and (problem := column_error(columns)):
        raise PluginError(f"{said}a document with {problem}")
    if "text" in given:
        utf8(given["text"], data, split)
        return given["text"], to_text(columns)
    if given.get("labels") is not None:
        raise PluginError(f"{said}labels, which pack_documents takes from make_rows")
    ids = given_ids(given.get("input_ids"), f"{said}'input_ids'")
    return ids, to_text(columns)


def utf8(text: object, data: TextSource, split: str) -> bytes:
    """A text as UTF-8. Other types and unpaired surrogates are errors."""
    if not isinstance(text, str):
        raise PluginError(
            f"data {data.name!r}: texts({split!r}) gave {type(text).__name__}, expected str"
        )
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        half, before = text[error.start], text[max(0, error.start - 20) : error.start]
        raise PluginError(
            f"data {data.name!r}: texts({split!r}) gave an unpaired surrogate, {half!r}, behind "
            f"{before!r}"
        ) from error


def given_ids(values: Any, which: str) -> np.ndarray:
    """Given ids as int32; `which` names them in errors."""
    array = np.asarray([] if values is None else values)
    if array.ndim == 1 and not len(array):
        return array.astype(np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        _refuse(which, array)
    return array.astype(np.int32)


def _refuse(which: str, array: np.ndarray) -> NoReturn:
    raise PluginError(
        f"{which} of shape {list(array.shape)} and type {array.dtype}, expected a "
        "flat list of whole numbers"
    )


class Encoder:
    """Encodes texts as documents, by the options of a data component."""

    def __init__(self, data: TextSource, tokenizer: PreTrainedTokenizerBase) -> None:
        self.bos, self.eos = bos_of(data, tokenizer), eos_of(data, tokenizer)
        self.parses = data.special_tokens == "parse"
        self.tokenizer = tokenizer
        self.special = SpecialTokens(tokenizer)

    def fingerprint(self) -> str:
        """Everything that determines the ids of a text."""
        made = f"2 {tokenizer_hash(self.tokenizer)} {self.bos} {self.eos} {self.parses}"
        words = not self.parses and bool(self.special.mistaken or self.special.letters)
        return f"{made} words" if words else made

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The concatenated ids of texts, and the length of each. Empty ones are left out."""
        return self._joined([self._whole(ids) for ids in self._ids(texts) if len(ids)])

    def with_columns(self, documents: Sequence[tuple[str | np.ndarray, str]]) -> dict[str, Any]:
        """The same for texts or complete ids, with the columns of those that are kept."""
        made = iter(self._ids([text for text, _ in documents if isinstance(text, str)]))
        each = [
            (self._text(next(made)) if isinstance(text, str) else text, columns)
            for text, columns in documents
        ]
        kept = [(ids, columns) for ids, columns in each if len(ids)]
        joined: dict[str, Any] = self._joined([ids for ids, _ in kept])
        return joined | {"columns": [columns for _, columns in kept]}

    def _text(self, ids: Any) -> Any:
        return self._whole(ids) if len(ids) else ids

    def _joined(self, documents: Sequence[Any]) -> dict[str, np.ndarray]:
        lengths = np.array(list(map(len, documents)), np.int32)
        if any(isinstance(each, np.ndarray) for each in documents):
            flat = np.concatenate(documents, dtype=np.int32)
        else:
            flat = np.fromiter(chain.from_iterable(documents), np.int32, int(lengths.sum()))
        return {"ids": flat, "lengths": lengths}

    def _whole(self, ids: Any) -> Any:
        """A document with its start and end; a start that it already has is not added twice."""
        bos = [] if list(ids[: len(self.bos)]) == self.bos else self.bos
        if isinstance(ids, np.ndarray):
            return np.concatenate([bos, ids, self.eos], dtype=np.int32, casting="unsafe")
        return [*bos, *ids, *self.eos] if bos else ids + self.eos

    def _ids(self, texts: Sequence[str]) -> list[Any]:
        apart = {n for n, text in enumerate(texts) if self._needs_care(text)}
        usual = [text for n, text in enumerate(texts) if n not in apart]
        made = iter(_plain(self.tokenizer, usual) if usual else [])
        return [self._careful(text) if n in apart else next(made) for n, text in enumerate(texts)]

    def _needs_care(self, text: str) -> bool:
        return len(text) > LONG or (not self.parses and self.special.has_one(text))

    def _careful(self, text: str) -> Any:
        """The ids of a long text, or of one with special tokens that remain text."""
        as_text = not self.parses and self.special.has_one(text)
        tokenizer = self.special.as_text if as_text else self.tokenizer
        options = {"split_special_tokens": True} if as_text else {}
        if len(text) > LONG and tokenizer.is_fast:
            return in_windows(text, tokenizer, size=LONG, **options)
        return _plain(tokenizer, [text], **options)[0]


def _plain(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **options: bool
) -> list[list[int]]:
    """Without special tokens, which the encoder adds: a tokenizer may add its own at the end."""
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
        **options,
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


class SpelledCount:
    """Counts texts that contain special tokens, to warn once."""

    def __init__(self, encoder: Encoder) -> None:
        self._spelled, self._parses = encoder.special, encoder.parses
        self.texts = 0
        self.first: str | None = None

    def see(self, text: str) -> None:
        """Count one more text."""
        if self._spelled.has_one(text):
            self.texts += 1
            self.first = self.first or self._spelled.first(text)

    def tell(self, split: str, documents: int | None) -> None:
        """A warning, if there is one; None: the number of documents is unknown."""
        if not self.texts:
            return
        said = (
            'they become tokens, as special_tokens = "parse" says'
            if self._parses
            else 'they stay text (special_tokens = "parse" in [data] makes tokens of them)'
        )
        which = "a document spells"
        if documents is not None:
            which = f"{self.texts:,} of {documents:,} documents spell"
        _log.warning(f"{split}: {which} out special tokens, such as {self.first}: {said}")
