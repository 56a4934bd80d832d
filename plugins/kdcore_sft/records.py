"""Records of dialogues: renamed to the names of `sft`, without empty table cells."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from kdcore_text.records import Record, Records
from kdcore_text.source import Source
from kdcore_text.tables import Table

from kdcore import RunError

NEEDED = ("instruction", "output", "prompt", "completion", "messages", "conversations")
OF_RECORDS = (*NEEDED, "input", "system", "tools", "documents")
OF_MESSAGES = ("role", "content", "reasoning_content", "tool_calls", "weight", "train")
_FORMATS = (
    {"messages"},
    {"conversations"},
    {"instruction", "input", "output"},
    {"prompt", "completion"},
)
_MISSING = object()


class Fields:
    """Renames the keys of records, and remembers which names occurred."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._found = set[str]()
        self._there = dict[str, None]()

    def of(self, record: Record) -> Record:
        """The record under the names of `sft`. All names that a dialogue needs must be present."""
        if not self._names:
            return record
        self._there.update(dict.fromkeys(_paths(record.values)))
        values = self._renamed(record.values, OF_RECORDS, record.where)
        named = self._names.keys()
        for form in _FORMATS:
            if form & named:  # explicit `fields` take precedence over detected names
                values = {k: v for k, v in values.items() if k in form or not _tells_format(k)}
        for key in ("messages", "conversations"):
            if isinstance(values.get(key), Sequence) and not isinstance(values[key], str):
                values[key] = [
                    self._renamed(each, OF_MESSAGES, f"{record.where}: message {n}")
                    if isinstance(each, Mapping)
                    else each
                    for n, each in enumerate(values[key], 1)
                ]
        return Record(values, record.where)

    def check(self, split: str) -> None:
        """Reject names that no record of the split had."""
        for ours, path in self._names.items():
            if self._there and ours not in self._found:
                raise RunError(
                    f"no record of the {split!r} split has {path!r}, which fields in [data] names "
                    f"for {ours}; there are {_listed(self._there)}"
                )

    def _renamed(
        self, values: Mapping[str, Any], ours: Collection[str], where: str
    ) -> dict[str, Any]:
        wanted = {our: path for our, path in self._names.items() if our in ours}
        found = {our: _at(values, path) for our, path in wanted.items()}
        for our, value in found.items():
            if value is not _MISSING:
                self._found.add(our)
            elif our in NEEDED or our == "role":
                raise RunError(
                    f"{where} has no {wanted[our]!r}, which fields in [data] names for {our}; it "
                    f"has {_listed(_paths(values))}"
                )
        taken = {*wanted, *(path for path in wanted.values() if path in values)}
        taken |= {path.split(".")[0] for path in wanted.values()}
        rest = {key: value for key, value in values.items() if key not in taken}
        return rest | {our: value for our, value in found.items() if value is not _MISSING}


def _tells_format(key: str) -> bool:
    return any(key in form for form in _FORMATS)


def _at(values: Any, path: str) -> Any:
    """The value at a dotted path; numbers index lists from 0."""
    if isinstance(values, Mapping):
        if path in values:
            return values[path]
        first, _, rest = path.partition(".")
        return _at(values[first], rest) if rest and first in values else _MISSING
    first, _, rest = path.partition(".")
    if isinstance(values, Sequence) and not isinstance(values, str) and first.isdecimal():
        if int(first) >= len(values):
            return _MISSING
        return _at(values[int(first)], rest) if rest else values[int(first)]
    return _MISSING


def _paths(values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from (f"{key}.{inner}" for inner in value)
        else:
            yield str(key)


def _listed(names: Collection[str] | Iterator[str]) -> str:
    return ", ".join(names) or "nothing"


class ChatRecords(Records):
    """Reads records; empty cells of tables are removed at every depth."""

    def table(self, table: Table) -> Source[Record]:
        """A data set of the library `datasets`, whose rows all have every column."""
        return _Filled(super().table(table))


class _Filled:
    def __init__(self, source: Source[Record]) -> None:
        self._source = source

    def count(self) -> int:
        return self._source.count()

    def read(self) -> Iterator[Record]:
        for record in self._source.read():
            # None values of the record itself stay, to be reported.
            values = {key: _filled(value) for key, value in record.values.items()}
            yield Record(values, record.where)


def _filled(value: Any) -> Any:
    """In tables, call arguments have a field for each argument of any call; the rest are None."""
    if isinstance(value, Mapping):
        kept = {key: each for key, each in value.items() if each is not None or key == "content"}
        return {key: _filled(each) for key, each in kept.items()}
    return [_filled(each) for each in value] if isinstance(value, list | tuple) else value
