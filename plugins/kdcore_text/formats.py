"""What format a file has: by its ending, or by how it begins where it says that it is text."""

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
_LONGEST_HEADER = 1000  # characters; a longer line is no header


def ending_of(path: Path) -> str:
    """The ending that says the format, in lower case: of a.JSONL.gz, .jsonl."""
    name = Path(path.name.lower())
    return (name.with_suffix("") if name.suffix in PACKED else name).suffix


def format_of(path: Path) -> Format | None:
    """By the ending, whatever its case; compressed files have one more. None: it says nothing."""
    return ENDINGS.get(ending_of(path))


def check_is_text(path: Path, column: str) -> None:
    """Refuse a file that would be read as text and begins as JSON, or with a header of CSV."""
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
    first = head.split("\n")[:2]
    if len(first) < 2 or len(first[0]) > _LONGEST_HEADER:
        return False
    cells = ([next(csv.reader([line], delimiter=each)) for line in first] for each in DELIMITERS)
    return any(1 < len(head) == len(row) and column in head for head, row in cells)
