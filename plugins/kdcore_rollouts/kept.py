"""Answers kept on disk, next to the teacher caches: what was written once is read from then on.

A folder holds the answers of one writer with one way to draw: `meta.json` says which, and
`answers.jsonl` has a line for each answer, appended as it comes. A line that was torn by a crash is
no answer. Several processes may append at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Protocol
from uuid import uuid4

from kdcore_cached.store import ABOUT, META, as_text, key_of

from kdcore import Prompt, Run, Sampling

Key = tuple[str, int]
"""What was asked, and the number of the answer to it."""

KIND = "answers"
ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class KeptAnswer:
    """One answer, or why there is none."""

    ids: Sequence[int] = ()  # with the end token where it is finished; a server's has text only
    finished: bool = True
    log_probs: Sequence[float] | None = None
    messages: Sequence[Mapping[str, Any]] | None = None  # what was asked, if it was a dialogue
    text: str = ""
    left_out: str = ""  # "refused", "empty" or "truncated"


class Answers:
    """The answers in a folder, by the key of what was asked and the number of the answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[Key, int] = {}  # where each line begins
        self._read_to = 0
        self._path = folder / ANSWERS

    @classmethod
    def open(cls, caches: Path, writer: str, meta: Mapping[str, object], teacher: str) -> Answers:
        """Those that are bound to `meta`, in a folder that is made where it is missing.

        `teacher` says for people who answers.
        """
        bound = {"kind": KIND, "writer": writer, **meta}
        folder = caches / f"{KIND}-{writer}-{key_of(as_text(bound))}"
        if not folder.exists():
            made = folder.with_name(f".{folder.name}-{uuid4().hex}")
            made.mkdir(parents=True)
            (made / META).write_text(as_text(bound), encoding="utf-8")
            (made / ABOUT).write_text(json.dumps({"teacher": teacher}, indent=1), encoding="utf-8")
            (made / ANSWERS).touch()
            try:
                made.rename(folder)
            except OSError:  # another process was faster
                if not folder.exists():
                    raise
        return cls(folder)

    @cached_property
    def meta(self) -> dict[str, Any]:
        """What the answers are bound to."""
        found: dict[str, Any] = json.loads((self.folder / META).read_text(encoding="utf-8"))
        return found

    @cached_property
    def about(self) -> dict[str, Any]:
        """The same for people."""
        found: dict[str, Any] = json.loads((self.folder / ABOUT).read_text(encoding="utf-8"))
        return found

    @property
    def bytes(self) -> int:
        """On disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def __len__(self) -> int:
        self._look()
        return len(self._places)

    def __contains__(self, key: Key) -> bool:
        if key not in self._places:
            self._look()
        return key in self._places

    def __getitem__(self, key: Key) -> KeptAnswer:
        if key not in self:
            raise KeyError(key)
        with self._path.open("rb") as file:
            file.seek(self._places[key])
            line = _parsed(file.readline())
        assert line is not None, "only whole lines are known"
        return _answer(line)

    def __iter__(self) -> Iterator[KeptAnswer]:
        self._look()
        return (self[key] for key in list(self._places))

    def put(self, key: Key, answer: KeptAnswer) -> None:
        """Append an answer. Once this returns, no crash of the process loses it."""
        line = {"key": key[0], "n": key[1]} | {
            name: value for name, value in vars(answer).items() if value not in (None, "")
        }
        text = json.dumps(line, ensure_ascii=False)
        whole = f'{{"check": "{_check(text)}", "answer": {text}}}\n'
        with self._path.open("ab", buffering=0) as file:
            # What a crash tore off stays a line of its own.
            file.write(whole.encode() if self._ends_whole() else f"\n{whole}".encode())

    def fault(self) -> str | None:
        """Why it cannot be used."""
        try:
            text = (self.folder / META).read_text(encoding="utf-8")
            json.loads(text)
        except (OSError, ValueError) as error:
            return f"{META} cannot be read ({error})"
        if not self.folder.name.endswith(f"-{key_of(text)}"):
            return f"{META} was changed: the folder's name is of another one"
        return None

    def torn(self) -> int:
        """Lines that hold no whole answer."""
        with self._path.open("rb") as file:
            return sum(_parsed(line) is None for line in file if line.strip())

    def counts(self) -> dict[str, int]:
        """How many answers there are, and how many were left out for each reason."""
        found = {"kept": 0, "refused": 0, "empty": 0, "truncated": 0}
        for each in self:
            found[each.left_out or "kept"] += 1
        return found

    def _look(self) -> None:
        """At the lines that were appended since the last time."""
        if not self._path.exists() or self._path.stat().st_size <= self._read_to:
            return
        with self._path.open("rb") as file:
            file.seek(self._read_to)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # it may still be written
                found = _parsed(line)
                if found is not None:
                    self._places.setdefault((found["key"], found.get("n", 0)), self._read_to)
                self._read_to += len(line)

    def _ends_whole(self) -> bool:
        size = self._path.stat().st_size
        if not size:
            return True
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def answers_in(caches: Path) -> list[Answers]:
    """All of a folder, by name."""
    if not caches.is_dir():
        return []
    found = sorted(caches.glob(f"{KIND}-*"))
    return [Answers(path) for path in found if (path / ANSWERS).is_file()]


def key_of_ids(ids: Sequence[int]) -> str:
    """What a prompt of these ids is found by."""
    return blake2b(json.dumps(list(map(int, ids))).encode(), digest_size=8).hexdigest()


def key_of_messages(messages: Sequence[Mapping[str, Any]]) -> str:
    """What a dialogue so far is found by."""
    text = json.dumps(list(messages), sort_keys=True, ensure_ascii=False)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def seed_of(key: str, number: int) -> int:
    """The seed of an answer: it hangs on what is asked, not on who asks it when."""
    return (int(key, 16) ^ (number * 0x9E3779B97F4A7C15)) & ((1 << 63) - 1)


def drawn_as(sampling: Sampling) -> dict[str, object]:
    """How answers are drawn, as `meta.json` says it."""
    return {**vars(sampling), "ends": sorted(sampling.ends)}


def _check(text: str) -> str:
    return blake2b(text.encode(), digest_size=4).hexdigest()


def _parsed(line: bytes) -> dict[str, Any] | None:
    """What a line holds; None where it was torn."""
    try:
        found = json.loads(line)
        answer: dict[str, Any] = found["answer"]
        whole = _check(json.dumps(answer, ensure_ascii=False)) == found["check"]
    except (ValueError, TypeError, KeyError):
        return None
    return answer if whole else None


def _answer(line: Mapping[str, Any]) -> KeptAnswer:
    known = {key: value for key, value in line.items() if key not in ("key", "n")}
    return KeptAnswer(**{"ids": (), **known})


class KeepsAnswers(Protocol):
    """A writer that keeps what it writes."""

    name: ClassVar[str]

    def kept(self, run: Run) -> Answers:
        """The answers so far."""

    def keys(self, prompt: Prompt) -> list[Key]:
        """What a prompt's answers are found by."""
