"""Minimal pairs by paradigm: from JSONL files, or from the configs of a data set on the hub."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from kdcore_text.opening import lines
from kdcore_text.paths import local

from kdcore import RunError
from kdcore_blimp import hub

Pair = tuple[str, str]
"""The grammatical sentence, and the one that is not."""

_KEYS = ("sentence_good", "sentence_bad")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def read_pairs(
    path: str, wanted: Sequence[str] | None, most: int | None
) -> Mapping[str, Sequence[Pair]]:
    """The first `most` pairs of each selected paradigm; None is all."""
    files = files_of(path, wanted)
    if files is None:
        return _of_hub(path, wanted, most)
    return {name: _of_file(file, most) for name, file in files.items()}


def files_of(path: str, wanted: Sequence[str] | None) -> Mapping[str, Path] | None:
    """The file of each selected paradigm; None if the path can only be a hub name."""
    place = local(path)
    if os.path.isfile(place):
        there = [place]
    elif os.path.isdir(place):
        there = sorted(file for file in place.glob("*.jsonl") if not file.name.startswith("."))
        if not there:
            raise RunError(f"the folder {path} has no .jsonl file; each should hold a paradigm")
    elif _HUB_NAME.fullmatch(path) and place.suffix not in (".json", ".jsonl"):
        return None
    else:
        raise RunError(f"cannot read {path!r}: there is no such file or folder")
    files = {file.stem: file for file in there}
    return {name: files[name] for name in _chosen(list(files), wanted, path)}


def _chosen(there: Sequence[str], wanted: Sequence[str] | None, path: str) -> Sequence[str]:
    for name in wanted or ():
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise RunError(f"{path} has no paradigm {name!r}{meant}")
    return list(dict.fromkeys(there if wanted is None else wanted))


def _of_file(path: Path, most: int | None) -> Sequence[Pair]:
    filled = ((number, line) for number, line in enumerate(lines(path), 1) if line.strip())
    placed = ((f"{path}, line {number}", line) for number, line in islice(filled, most))
    return _some([_pair(_parsed(line, where), where) for where, line in placed], str(path))


def _some(pairs: Sequence[Pair], place: str) -> Sequence[Pair]:
    if not pairs:
        raise RunError(f"{place} has no pair of sentences")
    return pairs


def _parsed(line: str, where: str) -> Mapping[str, object]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise RunError(f"{where} is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise RunError(f"{where} is not a JSON object with {_KEYS[0]!r} and {_KEYS[1]!r}")
    return record


def _pair(record: Mapping[str, object], where: str) -> Pair:
    for key in _KEYS:
        sentence = record.get(key)
        if not isinstance(sentence, str) or not sentence.strip():
            raise RunError(f"{where} has no sentence under {key!r}")
    return str(record[_KEYS[0]]), str(record[_KEYS[1]])


def _of_hub(
    name: str, wanted: Sequence[str] | None, most: int | None
) -> Mapping[str, Sequence[Pair]]:
    found = {}
    for config in _chosen(hub.configs_of(name), wanted, name):
        place = f"{name}, {config}"
        rows = enumerate(islice(hub.rows_of(name, config), most), 1)
        found[config] = _some([_pair(row, f"{place}, row {n}") for n, row in rows], place)
    return found
