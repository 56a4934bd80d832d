"""Answers stored on disk, next to the teacher caches: generated once, then read.

A folder holds the answers of one writer with one set of sampling options: `meta.json` identifies
both, and `answers.jsonl` has a line per answer, appended as it arrives. A line torn by a crash is
ignored. Several processes may append at once.
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

    ids: Sequence[int] = ()  # with the end token if finished; a server's answer has text only
    finished: bool = True
    log_probs: Sequence[float] | None = None
    messages: Sequence[Mapping[str, Any]] | None = None  # the request, if it was a dialogue
    text: str = ""
    left_out: str = ""  # "refused", "empty" or "truncated"


class Answers:
    """The answers in a folder, by the prompt's key and the number of the answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[Key, int] = {}  # where each line begins
        self._read_to = 0
        self._path = folder / ANSWERS

    @classmethod
    def open(cls, caches: Path, writer: str, meta: Mapping[str, object], teacher: str) -> Answers:
        """The answers identified by `meta`, in a folder that is created if missing.

        `teacher` is the answering model's name for the user.
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
        """What identifies the answers."""
        found: dict[str, Any] = json.loads((self.folder / META).read_text(encoding="utf-8"))
        return found

    @cached_property
    def about(self) -> dict[str, Any]:
        """The same for the user."""
        found: dict[str, Any] = json.loads((self.folder / ABOUT).read_text(encoding="utf-8"))
        return found

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
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
        """Append an answer. After the return, a crash of the process does not lose it."""
        line = {"key": key[0], "n": key[1]} | {
            name: value for name, value in vars(answer).items() if value not in (None, "")
        }
        text = json.dumps(line, ensure_ascii=False)
        whole = f'{{"check": "{_check(text)}", "answer": {text}}}\n'
        with self._path.open("ab", buffering=0) as file:
            # A torn line stays a line of its own.
            file.write(whole.encode() if self._ends_whole() else f"\n{whole}".encode())

    def error(self) -> str | None:
        """Why it cannot be used."""
        try:
            text = (self.folder / META).read_text(encoding="utf-8")
            json.loads(text)
        except (OSError, ValueError) as error:
            return f"{META} cannot be read ({error})"
        if not self.folder.name.endswith(f"-{key_of(text)}"):
            return f"{META} was changed: it does not match the folder's name"
        return None

    def torn(self) -> int:
        """Lines without a whole answer."""
        with self._path.open("rb") as file:
            return sum(_parsed(line) is None for line in file if line.strip())

    def counts(self) -> dict[str, int]:
        """How many answers there are, and how many were skipped for each reason."""
        found = {"kept": 0, "refused": 0, "empty": 0, "truncated": 0}
        for each in self:
            found[each.left_out or "kept"] += 1
        return found

    def _look(self) -> None:
        """Read the lines appended since the last call."""
        if not self._path.exists() or self._path.stat().st_size <= self._read_to:
            return
        with self._path.open("rb") as file:
            file.seek(self._read_to)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # may still be being written
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
    """All answer folders in a folder, by name."""
    if not caches.is_dir():
        return []
    found = sorted(caches.glob(f"{KIND}-*"))
    return [Answers(path) for path in found if (path / ANSWERS).is_file()]


def key_of_ids(ids: Sequence[int]) -> str:
    """The lookup key of a prompt of these ids."""
    return blake2b(json.dumps(list(map(int, ids))).encode(), digest_size=8).hexdigest()


def key_of_messages(messages: Sequence[Mapping[str, Any]]) -> str:
    """The lookup key of a dialogue so far."""
    text = json.dumps(list(messages), sort_keys=True, ensure_ascii=False)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def seed_of(key: str, number: int) -> int:
    """The seed of an answer: it depends on the prompt, not on when or by whom it is requested."""
    return (int(key, 16) ^ (number * 0x9E3779B97F4A7C15)) & ((1 << 63) - 1)


def drawn_as(sampling: Sampling) -> dict[str, object]:
    """The sampling options in the form of `meta.json`."""
    return {**vars(sampling), "ends": sorted(sampling.ends)}


def _check(text: str) -> str:
    return blake2b(text.encode(), digest_size=4).hexdigest()


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The content of a line; None if it was torn."""
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
    """A writer that stores its answers."""

    name: ClassVar[str]

    def kept(self, run: Run) -> Answers:
        """The answers stored so far."""

    def keys(self, prompt: Prompt) -> list[Key]:
        """The lookup keys of the prompts' answers."""
