"""Tables of `kdcore cache`: planned and existing caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kdcore_cached.catalogue import Kept
from kdcore_rollouts.kept import Answers

from kdcore.commands.fitting import Column, Fitting
from kdcore.terminal.formatting import percent

if TYPE_CHECKING:
    from kdcore_cached.building import Work


def planned(works: Sequence[Work]) -> Fitting:
    """What will be stored, before anything is."""
    sizes = [work.bytes_per_token * work.tokens for work in works]
    return Fitting(
        [
            Column("teacher", [work.label for work in works], 5, is_number=False),
            Column("of", [work.split for work in works], 4, is_number=False),
            Column("kind", [work.teacher.kind for work in works], 6, is_number=False),
            Column("bytes/token", [f"{work.bytes_per_token:,}" for work in works], 7),
            Column("tokens", [f"{work.tokens:,}" for work in works], 8),
            Column("in all", [size(each) for each in sizes], 9),
        ],
        whole="a wider terminal has all",
    )


def counted(answers: Answers) -> str:
    """The number of completions, and of omitted ones."""
    counts = answers.counts()
    left_out = [f"{n:,} {why}" for why, n in counts.items() if n and why != "kept"]
    said = f"{counts['kept']:,} answers"
    return f"{said}, left out: {', '.join(left_out)}" if left_out else said


def line_of(store: Kept | Answers) -> dict[str, object]:
    """A cache on one line, or what is wrong with it."""
    fault = store.fault()
    line: dict[str, object] = {"store": store.folder.name, "fault": fault, "bytes": store.bytes}
    if fault:
        return line
    if isinstance(store, Answers):
        return line | {"teacher": store.about["teacher"], "kind": "answers"} | store.counts()
    there, of = store.share()
    return line | {
        "teacher": store.about["teacher"],
        "data": store.about["data"],
        "split": store.meta["split"],
        "kind": store.meta["kind"],
        "context": store.meta["context"],
        "tokens": store.tokens,
        "there": there,
        "there_of": of,
    }


def table_of(rows: Sequence[dict[str, object]]) -> Fitting:
    """The lines, aligned."""

    def column(title: str, key: str, importance: int) -> Column:
        return Column(title, [str(row.get(key, "-")) for row in rows], importance, is_number=False)

    there = [str(row["fault"] or _there(row)) for row in rows]
    return Fitting(
        [
            column("store", "store", 9),
            column("teacher", "teacher", 6),
            column("data", "data", 3),
            column("kind", "kind", 7),
            column("context", "context", 2),
            Column("tokens", [f"{row.get('tokens', 0):,}" for row in rows], 4),
            Column("size", [size(int(str(row["bytes"]))) for row in rows], 8),
            Column("there", there, 5),
        ],
        whole="--json has all",
    )


def _there(row: Mapping[str, object]) -> str:
    if "kept" in row:
        return f"{row['kept']:,} answers"
    return f"{percent(float(str(row['there'])))} {row['there_of']}"


def size(number_of_bytes: float) -> str:
    """Disk space: 512 bytes, 1.5 GiB."""
    for unit, letters in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number_of_bytes >= unit:
            return f"{number_of_bytes / unit:.1f} {letters}"
    return f"{number_of_bytes:g} bytes"
