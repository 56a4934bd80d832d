"""Inspection of a data file: its format, its columns, and the data component that reads it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from kdcore_text import Text
from kdcore_text.formats import TABLES, format_of
from kdcore_text.opening import lines
from kdcore_text.records import Record, Records
from kdcore_text.splits import Splits

from kdcore.errors import RunError, UsageError

Kind = Literal["sft", "text"]

SAMPLE = 2000  # documents inspected closely
_MARK = "<|endoftext|>"

_FORMS = (("messages",), ("conversations",), ("instruction", "output"), ("prompt", "completion"))
"""Formats that `sft` detects; the first key of each identifies it."""
_ASKED = ("question", "instruction", "prompt", "query", "problem", "input", "user", "human")
_ANSWERED = ("answer", "output", "response", "completion", "solution", "target", "assistant")
_CONTEXT = ("context", "passage", "input")
_TEXTS = ("text", "content", "document", "story", "body")


@dataclass(frozen=True)
class DataFile:
    """A file to train on, and the options for reading it."""

    path: str
    kind: Kind
    documents: int  # non-empty ones
    sample: Sequence[Mapping[str, Any]]  # the first records; those of text have the key "text"
    options: Mapping[str, Any] = field(default_factory=dict)  # of the component `kind`
    note: str = ""  # why the options are needed
    columns: Sequence[str] = ()  # empty for plain text


def look_at(path: str, kind: Kind | None, named: tuple[str, str] | None = None) -> DataFile:
    """Read a file completely. Unusable content is a UsageError of one sentence.

    `named` are the columns of question and answer, if the user names them.
    """
    place = Path(os.path.expanduser(path))
    if os.path.isdir(place):
        raise UsageError(f"{path} is a folder: --data takes one file")
    if not os.path.isfile(place):
        raise UsageError(f"there is no file {path!r}: --data takes a local file")
    if not place.stat().st_size:
        raise UsageError(f"{path} is empty: there is nothing to train on")
    try:
        if format_of(place) in TABLES:
            return _records(path, kind, named)
        return _plain(path, "sft" if named else kind)
    except RunError as error:
        raise UsageError(str(error)) from None


def _plain(path: str, kind: Kind | None) -> DataFile:
    if kind == "sft":
        raise UsageError(f"{path} is plain text, without questions and answers: type --kind text")
    separator = _separator(Path(os.path.expanduser(path)))
    options: dict[str, Any] = {} if separator is None else {"separator": separator}
    sample, count = list[Mapping[str, Any]](), 0
    for text in Text(path=path, **options).texts("train"):
        count += 1
        if count <= SAMPLE:
            sample.append({"text": text})
    note = {None: "", "\n": "each line is a document, as there are no blank ones"}
    said = note.get(separator, "what the file has between documents")
    return _usable(DataFile(path, "text", count, sample, options, said))


def _separator(place: Path) -> str | None:
    """What separates documents: a marker, line breaks, or else blank lines (None)."""
    blank = False
    for line in map(str.strip, lines(place)):
        if line == _MARK:
            return _MARK
        blank = blank or not line
    return None if blank else "\n"


def _records(path: str, kind: Kind | None, named: tuple[str, str] | None) -> DataFile:
    columns, form, sample = dict[str, None](), _Form(path), list[Mapping[str, Any]]()
    characters: dict[str, int] = {}
    for record in Splits(Records(None), path=path).of("train"):
        columns.update(dict.fromkeys(record.values))
        form.check(record)
        for key, value in record.values.items():
            if isinstance(value, str) and value.strip():
                characters[key] = characters.get(key, 0) + len(value)
        if len(sample) < SAMPLE:
            sample.append(record.values)
        form.count += 1
    if not form.count:
        raise UsageError(f"{path} holds no usable record: it has none at all")
    if named:
        mapped: tuple[dict[str, str], str] | None = _named(path, columns, named)
    else:
        mapped = None if kind == "text" else _as_dialogues(columns, form)
    if mapped is not None:
        fields, note = mapped
        options = {"fields": fields} if fields else {}
        return DataFile(path, "sft", form.count, sample, options, note, [*columns])
    return _as_texts(path, kind, sample, columns, characters)


class _Form:
    """The format of a file's records, from their keys; a mixture is an error."""

    def __init__(self, path: str) -> None:
        self.path, self.count = path, 0
        self.name: str | None = None
        self._first = ""

    def check(self, record: Record) -> None:
        """Compare a record with earlier ones."""
        names = [name for name, *_ in _FORMS if record.values.get(name) is not None]
        name = names[0] if names else next((n for n in _TEXTS[:1] if n in record.values), None)
        if name is None:
            return
        if self.name is None:
            self.name, self._first = name, record.where
        elif self.name not in record.values:
            raise UsageError(
                f"{record.where} has {name!r}, and earlier ones have {self.name!r}: one file "
                "holds records of one format, so split it in two"
            )


def _named(
    path: str, columns: Mapping[str, None], named: tuple[str, str]
) -> tuple[dict[str, str], str]:
    for column in named:
        if column not in columns:
            raise UsageError(f"{path} has no column {column!r}; it has {', '.join(columns)}")
    return dict(zip(("instruction", "output"), named, strict=True)), "sft's name = the file's"


def _as_dialogues(columns: Mapping[str, None], form: _Form) -> tuple[dict[str, str], str] | None:
    """The keys to map, and why; None if there are no questions and answers."""
    if any(set(needed) <= columns.keys() for needed in _FORMS):
        return {}, ""
    by_lower = {name.lower(): name for name in columns}
    asked = next((by_lower[name] for name in _ASKED if name in by_lower), None)
    answered = next((by_lower[name] for name in _ANSWERED if name in by_lower), None)
    if asked is None or answered is None:
        return None
    fields = {"instruction": asked, "output": answered}
    context = next((by_lower[n] for n in _CONTEXT if n in by_lower and by_lower[n] != asked), None)
    if context not in (None, "input"):
        fields["input"] = str(context)
    return {ours: theirs for ours, theirs in fields.items() if ours != theirs}, (
        "sft's name = the file's"
    )


def _as_texts(
    path: str,
    kind: Kind | None,
    sample: Sequence[Mapping[str, Any]],
    columns: Mapping[str, None],
    characters: Mapping[str, int],
) -> DataFile:
    known = [name for name in columns if name.lower() in _TEXTS and name in characters]
    found = known or [name for name in characters if len(characters) == 1 or kind == "text"]
    if kind == "sft" or not found:
        _refuse(path, kind, columns, characters)
    column = known[0] if known else max(found, key=lambda name: characters[name])
    options = {} if column == "text" else {"column": column}
    texts = [{"text": each.get(column) or ""} for each in sample]
    filled = Text(path=path, column=column).texts("train")
    count = sum(1 for _ in filled)
    note = "the column that holds the text"
    return _usable(DataFile(path, "text", count, texts, options, note, [*columns]))


def _refuse(
    path: str, kind: Kind | None, columns: Mapping[str, None], characters: Mapping[str, int]
) -> NoReturn:
    there = ", ".join(columns) or "none"
    if not characters:
        raise UsageError(f"{path} holds no usable record: no column of it has text ({there})")
    way = "type --question COLUMN --answer COLUMN"
    if kind == "sft":
        raise UsageError(
            f"{path} has the columns {there}; it is not clear which are question and answer: {way}"
        )
    raise UsageError(
        f"{path} has the columns {there}; it is not clear which of them to train on: {way}, or "
        "--kind text for the longest"
    )


def _usable(found: DataFile) -> DataFile:
    if not found.documents:
        raise UsageError(f"{found.path} holds no usable record: all of them are blank")
    return found


def columns_of(found: DataFile) -> Iterator[str]:
    """The file's columns in words, for the head of the recipe."""
    what = "dialogues" if found.kind == "sft" else "texts"
    yield f"{found.documents:,} {what}"
    if found.columns:
        yield f"columns {', '.join(found.columns[:8])}"
