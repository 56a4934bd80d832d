"""Check the contracts of data and tokenizers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcore.api.data import Data, Tokenizer
from kdcore.data.where import column_error
from kdcore.hashing import tokenizer_hash
from kdcore.testing.claims import require
from kdcore.testing.fakes import tiny_tokenizer
from kdcore.testing.runs import tiny_run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST = 200  # documents or rows to check
_SENTENCE = "Once upon a time, 3 owls met a fox."


def check_data(data: Data) -> None:
    """Assert that data yields the same documents and training rows each time, within `block`.

    Columns must be texts or numbers, have names in `column_names`, and be the same each time. The
    validation split may be empty; otherwise its documents are checked too.
    """
    if type(data).make_rows is Data.make_rows:
        for split in ("train", "validation"):
            _check_texts(data, split)
            _check_columns_of_documents(data, split)
    _check_rows(data)


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Assert that a tokenizer loads the same twice, and encodes alike once saved and loaded."""
    with tiny_run() as run:
        made = tokenizer.load(run, run.data)
        again = tokenizer.load(run, run.data)
    known = hasattr(made, "save_pretrained") and hasattr(made, "eos_token_id")
    require(known, tokenizer, f"returned {type(made).__name__}, not a tokenizer of transformers")
    same = tokenizer_hash(made) == tokenizer_hash(again)
    require(same, tokenizer, "loads another tokenizer the second time")
    require(made.eos_token_id is not None, tokenizer, "has no token that ends a text (eos_token)")
    ids = made(_SENTENCE, add_special_tokens=False)["input_ids"]
    require(len(ids) > 0, tokenizer, "makes no ids of a sentence")
    require(min(ids) >= 0 and max(ids) < len(made), tokenizer, f"gives ids beyond {len(made)}")
    _check_kept(tokenizer, made, ids)


def _check_kept(tokenizer: Tokenizer, made: PreTrainedTokenizerBase, ids: list[int]) -> None:
    """Runs save their tokenizer in a folder and load it from there."""
    from kdcore.models.loading import load_tokenizer

    with TemporaryDirectory(prefix="kdcore-testing-") as folder:
        made.save_pretrained(folder)
        kept = load_tokenizer(folder)
    found = kept(_SENTENCE, add_special_tokens=False)["input_ids"]
    require(found == ids, tokenizer, "gives other ids once it was saved and loaded")
    same = kept.decode(ids) == made.decode(ids)
    require(same, tokenizer, "gives another text back once it was saved and loaded")


def _check_texts(data: Data, split: str) -> None:
    texts, again = (list(islice(_documents(data, split), _MOST)) for _ in range(2))
    wrong = next((each for each in texts if not isinstance(each, str)), None)
    require(wrong is None, data, f"gives {type(wrong).__name__} as a document of {split!r}")
    require(texts == again, data, f"gives other documents of {split!r} when asked again")
    filled = split != "train" or any(each.strip() for each in texts)
    require(filled, data, "gives no document for training")


def _documents(data: Data, split: str) -> Iterable[str]:
    found = data.texts(split)
    require(not isinstance(found, str), data, f"gives one text for {split!r}, not several")
    return found


def _check_columns_of_documents(data: Data, split: str) -> None:
    if not callable(getattr(data, "documents", None)):  # in earlier versions an option
        return
    each, again = (
        [_columns_in(given) for given in islice(data.documents(split), _MOST)] for _ in range(2)
    )
    for columns in each:
        _check_columns(data, columns)
    require(each == again, data, f"gives other columns of {split!r} when asked again")


def _columns_in(given: object) -> object:
    return given.get("columns", {}) if isinstance(given, Mapping) else {}


def _check_columns(data: Data, columns: object) -> None:
    problem = column_error(columns)
    require(problem is None, data, f"gives {problem}")
    known = data.column_names()
    if known is not None and isinstance(columns, Mapping):
        unknown = next((name for name in columns if name not in known), None)
        require(unknown is None, data, f"gives a column {unknown!r} that column_names lacks")


def _check_rows(data: Data) -> None:
    tokenizer = tiny_tokenizer()
    rows, again = (
        list(islice(data.make_rows("train", tokenizer, seed=0, epoch=0), _MOST)) for _ in range(2)
    )
    require(bool(rows), data, "gives no row for training")
    for row, other in zip(rows, again, strict=True):
        _check_row(data, row, len(tokenizer))
        arrays = row.keys() - {"columns"}
        same = all(np.array_equal(row[key], other[key]) for key in arrays)
        require(same, data, "gives other rows for the same seed and epoch")
        for columns, others in zip(_each_columns(row), _each_columns(other), strict=True):
            _check_columns(data, columns)
            require(columns == others, data, "gives other columns for the same seed and epoch")
    trained = any((np.asarray(row.get("labels", row["input_ids"])) != -100).any() for row in rows)
    require(trained, data, "gives rows without a token that is trained on")


def _each_columns(row: Mapping[str, Any]) -> list[Any]:
    """The columns of the row, or of each of its documents."""
    given = row.get("columns")
    if given is None or isinstance(given, Mapping):
        return [given or {}]
    return list(given)


def _check_row(data: Data, row: Mapping[str, Any], vocabulary: int) -> None:
    ids = np.asarray(row["input_ids"])
    require(ids.ndim == 1 and ids.size > 0, data, f"gives input_ids of shape {ids.shape}")
    require(
        len(ids) <= data.block, data, f"gives a row of {len(ids)} ids, and block is {data.block}"
    )
    require(ids.min() >= 0 and ids.max() < vocabulary, data, "gives ids that the tokenizer lacks")
    if "labels" in row:
        labels = np.asarray(row["labels"])
        require(labels.shape == ids.shape, data, "gives labels of another length than input_ids")
        right = bool(((labels == -100) | (labels == ids)).all())
        require(right, data, "gives labels that are neither -100 nor the id itself: unshifted")
