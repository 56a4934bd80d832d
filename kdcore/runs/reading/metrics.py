"""A run's metrics.jsonl: one JSON object per line.

Every line has `stage`, `step`, `tokens`, `time` (seconds since 1970), `elapsed` (seconds of
running, over all attempts) and `cpu_seconds` (CPU seconds of the main process in that time).
Training lines add `loss`, for each term `loss/<label>`, its mean in
nats per token, and `weight/<label>` (`loss` is the sum of their products), `lr`, `kept`,
`tokens_per_second`, `selection/...`, now and then `gradient/<label>` (each term's share of the
gradient), and `schema`, which is 2: lines without it are older, and include the weight in
`loss/<label>`. With a [rollout] they have `rollout/length` (tokens per completion),
`rollout/finished` (the share that ended by itself), `rollout/repeats` (the share of repeated
4-grams) and `rollout/time_share` (share of time spent on generation). Evaluation lines add
`eval/<name>`. Non-finite values are null, as JSON cannot represent them. Lines of `kdcore eval`
have `again` (true) and are appended at the end; they never change what the run itself measured.
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
"""The version of a training line's keys: see above."""

METRICS = "metrics.jsonl"
_BLOCK = 1 << 16  # bytes per read
LOG = "log.txt"  # messages, next to it


def training_line(record: Record) -> Line:
    """A record with the keys of metrics.jsonl."""
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
    """Scores with the keys of metrics.jsonl; texts stay texts."""
    said = {
        name: value if isinstance(value, str) else float(value) for name, value in scores.items()
    }
    return {"step": step, **{f"eval/{name}": value for name, value in said.items()}}


def to_json(line: Mapping[str, float | str | None]) -> str:
    """The line as strict JSON: non-finite values become null."""
    return json.dumps({key: _finite(value) for key, value in line.items()}, allow_nan=False)


def _finite(value: float | str | None) -> float | str | None:
    return value if not isinstance(value, float) or math.isfinite(value) else None


def is_part(name: str, names: Collection[str]) -> bool:
    """Whether a score is a part of another one: "blimp/agreement" of "blimp"."""
    return name.rpartition("/")[0] in names


def read_metrics(folder: Path) -> list[Line]:
    """The complete lines of a run's metrics.jsonl; empty if it is missing.

    Without values measured after the run, unless the run did not measure them itself.
    """
    return list(iter_metrics(folder))


def iter_metrics(folder: Path) -> Iterator[Line]:
    """The same as an iterator: long runs have a hundred megabytes of them."""
    path = folder / METRICS
    own = _own_keys(path)
    for _, line in whole_lines(path):
        if AGAIN in line and own is not None:
            yield {key: each for key, each in line.items() if "/" not in key or key not in own}
        else:
            yield line


def _own_keys(path: Path) -> set[str] | None:
    """The keys that the run itself measured; None if nothing was measured later."""
    mark = f'"{AGAIN}"'.encode()
    if not path.is_file():
        return None
    with path.open("rb") as file:
        if not any(mark in line for line in file):
            return None
    return {key for _, line in whole_lines(path) if AGAIN not in line for key in line}


def latest_values(folder: Path, wanted: Collection[str]) -> Line:
    """The last value of each key, read from the end until all wanted keys are found.

    Values measured after the run rank behind the run's own.
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
    """The lines of a file in reverse, read in blocks from its end."""
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
    """Append a measurement made after a run to its record; False if the run keeps none.

    `sets` is what the command line changed, as typed. Keeps the file's modification time, as the
    run was not active.
    """
    path = folder / METRICS
    if not path.is_file() or path.is_symlink():  # never write through an untrusted link
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
    """Text and content of each line, without torn ones."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            line = _parsed(text)
            if line and text.endswith("\n"):
                yield text, line


def _parsed(text: str) -> Line:
    """The line's content; None if it is torn."""
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else {}
