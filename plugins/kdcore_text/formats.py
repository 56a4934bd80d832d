"""A file's format: by its ending; text files are checked against how they begin."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from kdcore import RunError
from kdcore_text.opening import PACKED, beginning

Format = Literal["text", "json", "csv", "parquet", "arrow"]

ENDINGS: Mapping[str, Format] = {
    ".txt": "text",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
TABLES: Sequence[Format] = ("json", "csv", "parquet", "arrow")
"""Formats of records."""
BINARY: Sequence[Format] = ("parquet", "arrow")
"""Those of them that Arrow reads."""

DELIMITERS = ",;\t|"
_JSON = re.compile(r'\s*(?:\[\s*)?\{\s*"(?:[^"\\]|\\.)*"\s*:')
_LONGEST_HEADER = 1000  # characters; a longer line is not a header


def ending_of(path: Path) -> str:
    """The ending that determines the format, in lower case: .jsonl for a.JSONL.gz."""
    name = Path(path.name.lower())
    return (name.with_suffix("") if name.suffix in PACKED else name).suffix


def format_of(path: Path) -> Format | None:
    """The format by ending, ignoring case and compression. None: unknown."""
    return ENDINGS.get(ending_of(path))


def check_is_text(path: Path, column: str) -> None:
    """Reject text files that begin like JSON, or with a CSV header."""
    head = beginning(path)
    found = "json" if _JSON.match(head) else "csv" if _has_header(head, column) else None
    if found is not None:
        ending = {"json": ".jsonl", "csv": ".csv"}[found]
        raise RunError(
            f"{path} holds {found.upper()}: to read its column {column!r}, let its name end in "
            f'{ending}, or set format = "{found}" in [data]; with format = "text" it is trained on '
            "as it is written"
        )


def _has_header(head: str, column: str) -> bool:
    first = [line.removesuffix("\r") for line in head.split("\n")[:2]]
    if len(first) < 2 or len(first[0]) > _LONGEST_HEADER or any("\r" in line for line in first):
        return False
    cells = ([next(csv.reader([line], delimiter=each)) for line in first] for each in DELIMITERS)
    return any(1 < len(head) == len(row) and column in head for head, row in cells)
