"""Columns of documents, and the documents that a `where` matches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from kdcore.errors import RunError

Value = str | int | float
Columns = Mapping[str, Value]
"""Metadata of one document, by column."""

Where = Mapping[str, Value | Sequence[Value]]
"""Column -> the matching value or values; all columns must match."""

SOURCE = "source"
"""The engine's own column: who wrote a document."""

FROM_DATA = "data"
"""Its default."""


def value_of(columns: Columns, name: str) -> Value | None:
    """A document's value in a column; None where it has none."""
    return columns.get(name, FROM_DATA if name == SOURCE else None)


def matches(columns: Columns, where: Where) -> bool:
    """Whether a document has one of the values in each column."""
    return all(value_of(columns, name) in values_in(values) for name, values in where.items())


def values_in(values: Value | Sequence[Value]) -> Sequence[Value]:
    """The matching values, from one value or a list."""
    return [values] if isinstance(values, str | int | float) else values


def column_error(columns: object) -> str | None:
    """Why something is not a valid mapping of columns; None if it is."""
    if not isinstance(columns, Mapping):
        return f"columns of type {type(columns).__name__}, expected a mapping"
    for name, value in columns.items():
        if not isinstance(name, str):
            return f"a column called {name!r}, and names are text"
        if not isinstance(value, str | int | float):
            kind = type(value).__name__
            return f"a {kind} in the column {name!r}, and columns hold text and numbers"
    return None


def unknown_columns(where: Where, known: Sequence[str]) -> Iterator[str]:
    """Columns that the data does not provide, one sentence each."""
    for name in where:
        if name not in (SOURCE, *known):
            there = ", ".join((*known, SOURCE))
            yield f"no document has the column {name!r}; there are: {there}"


def categories_among(values: Iterable[Value | None], name: str) -> list[str]:
    """The distinct texts of a column, sorted; empty for numbers."""
    known = {value for value in values if value is not None}
    texts = sorted(value for value in known if isinstance(value, str))
    if texts and len(texts) < len(known):
        number = next(value for value in known if not isinstance(value, str))
        raise RunError(
            f"the column {name!r} holds texts, such as {texts[0]!r}, and numbers, such as "
            f"{number}: a column is of one or the other"
        )
    return texts
