"""A run's record, metrics.jsonl: one JSON object a line.

Every line has `stage`, `step`, `tokens`, `time` (seconds since 1970) and `elapsed` (seconds of
running, over all continuations). Training lines add `loss`, for each term `loss/<label>`, its mean
in nats a token, and `weight/<label>` (`loss` is the sum of their products), `lr`, `kept`,
`tokens_per_second`, `selection/...`, now and then `gradient/<label>` (each term's share of the
gradient), and `schema`, which is 2: lines without it are older, and have the weight in their
`loss/<label>`. Where there is a [rollout] they have `rollout/length` (tokens of an answer),
`rollout/finished` (the share that ended by itself), `rollout/repeats` (the share of repeated
4-grams) and `rollout/time_share` (of the time, spent on writing). Evaluation lines add
`eval/<name>`. A value that is not finite is written as null, because JSON has no other word for it.
Lines of `kdcore eval` have `again` (true) and stand at the end; what a run measured itself is not
changed by them.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdcore.api.hookspecs import Record

Line = dict[str, float | str | None]
"""One line of metrics.jsonl."""
AGAIN = "again"
"""The key of lines that were measured after the run."""

SCHEMA = 2
"""What the keys of a training line mean: see above."""

METRICS = "metrics.jsonl"
_BLOCK = 1 << 16  # bytes that are read at once
LOG = "log.txt"  # beside it: messages


def training_line(record: Record) -> Line:
    """A record under the keys of metrics.jsonl."""
    return {
        "step": record.step,
        "tokens": record.tokens,
        "loss": record.loss,
        **{f"loss/{label}": value for label, value in record.terms.items()},
        **{f"weight/{label}": value for label, value in record.weights.items()},
        "schema": SCHEMA,
        "lr": record.lr,
        "kept": record.kept,
        "tokens_per_second": record.tokens_per_second,
        **{f"selection/{name}": value for name, value in record.selection.items()},
        **{f"gradient/{label}": share for label, share in record.gradient.items()},
        **{f"rollout/{name}": value for name, value in record.rollout.items()},
        **{f"teacher/{name}": value for name, value in record.teacher.items()},
    }


def evaluation_line(step: int, scores: Mapping[str, float | str]) -> Line:
    """Scores under the keys of metrics.jsonl; texts stay texts."""
    said = {
        name: value if isinstance(value, str) else float(value) for name, value in scores.items()
    }
    return {"step": step, **{f"eval/{name}": value for name, value in said.items()}}


def to_json(line: Mapping[str, float | str | None]) -> str:
    """The line as strict JSON: values that are not finite become null."""
    return json.dumps({key: _finite(value) for key, value in line.items()}, allow_nan=False)


def _finite(value: float | str | None) -> float | str | None:
    return value if not isinstance(value, float) or math.isfinite(value) else None


def is_part(name: str, names: Collection[str]) -> bool:
    """Whether a score is a part of another one that is there: "blimp/agreement" of "blimp"."""
    return name.rpartition("/")[0] in names


def read_metrics(folder: Path) -> list[Line]:
    """The whole lines of a run's metrics.jsonl; none where the file is missing.

    What was measured again after the run is left out, unless the run had not measured it itself.
    """
    return list(iter_metrics(folder))


def iter_metrics(folder: Path) -> Iterator[Line]:
    """The same one by one: long runs have a hundred megabytes of them."""
    path = folder / METRICS
    own = _own_keys(path)
    for _, line in whole_lines(path):
        if AGAIN in line and own is not None:
            yield {key: each for key, each in line.items() if "/" not in key or key not in own}
        else:
            yield line


def _own_keys(path: Path) -> set[str] | None:
    """What the run measured itself; None where nothing was measured again."""
    mark = f'"{AGAIN}"'.encode()
    if not path.is_file():
        return None
    with path.open("rb") as file:
        if not any(mark in line for line in file):
            return None
    return {key for _, line in whole_lines(path) if AGAIN not in line for key in line}


def latest_values(folder: Path, wanted: Collection[str]) -> Line:
    """The last value of each key, read from the end until all that is wanted was met.

    What was measured again after the run stands back behind the run's own.
    """
    path, found, again = folder / METRICS, Line(), Line()
    for text in _from_the_end(path):
        line = _parsed(text)
        if AGAIN in line:
            again = {**line, **again}
            continue
        found = {**line, **found}
        if line and found.keys() >= set(wanted):
            break
    return {**again, **found}


def _from_the_end(path: Path) -> Iterator[str]:
    """The lines of a file, the last one first; it is read in blocks from its end."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        at, rest = file.seek(0, os.SEEK_END), b""
        while at:
            size = min(at, _BLOCK)
            at = file.seek(at - size)
            first, *lines = (file.read(size) + rest).split(b"\n")
            yield from (line.decode("utf-8", "replace") for line in reversed(lines))
            rest = first
        yield rest.decode("utf-8", "replace")


def append_again(folder: Path, step: int, scores: Mapping[str, float | str], sets: str) -> bool:
    """Add what was measured after a run to its record; False where it keeps none.

    `sets` is what the command line changed, as typed. The file keeps its time of change: the run
    was not busy.
    """
    path = folder / METRICS
    if not path.is_file() or path.is_symlink():  # nothing is written through a stranger's link
        return False
    before, last = path.stat(), latest_values(folder, ("stage", "tokens"))
    about: Line = {"stage": last.get("stage"), "step": step, "tokens": last.get("tokens")}
    about |= {"time": round(time.time(), 3), AGAIN: True, **({"set": sets} if sets else {})}
    text = to_json({**about, **evaluation_line(step, scores)}) + "\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return True


def whole_lines(path: Path) -> Iterator[tuple[str, Line]]:
    """Text and content of each line, without those that a crash left torn."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            line = _parsed(text)
            if line and text.endswith("\n"):
                yield text, line


def _parsed(text: str) -> Line:
    """The line's content; nothing where it is torn."""
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else {}
