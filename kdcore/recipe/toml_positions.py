"""Positions of keys in a TOML text: key path -> line and column.

The text must be valid TOML (it was parsed before), so nothing is checked here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

import tomli

KeyPath = tuple[str | int, ...]
"""Keys from the outside in; numbers are list indices from 0."""

_LINE = r"\"(?:\\.|[^\"\\\n])*\"|'[^'\n]*'"

_TEXT = re.compile(
    r'"""(?:\\.|(?!""").)*"""(?:"{0,2})|' + r"'''(?:(?!''').)*'''(?:'{0,2})|" + _LINE, re.DOTALL
)

_KEY = re.compile(r"[A-Za-z0-9_-]+|" + _LINE)
_SCALAR = re.compile(r"[^\[\]{},#\n]+")
_NUMBERS = re.compile(r"\[[^\[\]{}#\"']{4096,}\]")  # long: an error in it is reported at its key
_BLANK = re.compile(r"[ \t]*")
_BETWEEN = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")


def locate(text: str, path: KeyPath) -> tuple[int, int]:
    """Line and column, from 1, of the deepest part of `path` in the text."""
    written = places(text)
    for depth in range(len(path), 0, -1):
        if path[:depth] in written:
            return position(text, written[path[:depth]])
    return 1, 1


def position(text: str, offset: int) -> tuple[int, int]:
    """Line and column, from 1, of an offset."""
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


@lru_cache
def places(text: str) -> Mapping[KeyPath, int]:
    """The offset of the first mention of each key, table and list item."""
    return _Scanner(text).scan()


class _Scanner:
    """Scans a TOML text and records every key."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found: dict[KeyPath, int] = {}
        self.last: dict[KeyPath, int] = {}  # of each list of tables: index of the current item

    def scan(self) -> Mapping[KeyPath, int]:
        table: KeyPath = ()
        self._take(_BETWEEN)
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._take(_BETWEEN)
        return self.found

    def _header(self) -> KeyPath:
        """`[a.b]` or `[[a.b]]`; in the path, a list of tables is followed by its last index."""
        brackets = 2 if self.text.startswith("[[", self.at) else 1
        self.at += brackets
        path: KeyPath = ()
        parts = list(self._keys())
        for number, (part, offset) in enumerate(parts, 1):
            path = (*path, part)
            self.found.setdefault(path, offset)
            if brackets == 2 and number == len(parts):
                self.last[path] = self.last.get(path, -1) + 1
            if path in self.last:
                path = (*path, self.last[path])
                self.found.setdefault(path, offset)
        self.at += brackets
        return path

    def _pair(self, table: KeyPath) -> None:
        path = table
        for part, offset in self._keys():
            path = (*path, part)
            self.found.setdefault(path, offset)
        self.at += 1  # the equals sign
        self._take(_BLANK)
        self._value(path)

    def _keys(self) -> Iterator[tuple[str, int]]:
        """The parts of a dotted key, with offsets."""
        while True:
            self._take(_BLANK)
            offset = self.at
            part = self._take(_KEY)
            quoted = part[:1] in ("'", '"')
            yield next(iter(tomli.loads(f"{part} = 0"))) if quoted else part, offset
            self._take(_BLANK)
            if self.text[self.at] != ".":
                return
            self.at += 1

    def _value(self, path: KeyPath) -> None:
        first = self.text[self.at]
        if first == "[":
            self._list(path)
        elif first == "{":
            self._inline_table(path)
        else:
            self._take(_TEXT if first in "\"'" else _SCALAR)

    def _list(self, path: KeyPath) -> None:
        if many := _NUMBERS.match(self.text, self.at):
            self.at = many.end()
            return
        self.at += 1
        self._take(_BETWEEN)
        count = 0
        while self.text[self.at] != "]":
            self.found.setdefault((*path, count), self.at)
            self._value((*path, count))
            count += 1
            self._comma()
        self.at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self.at += 1
        self._take(_BETWEEN)
        while self.text[self.at] != "}":
            self._pair(path)
            self._comma()
        self.at += 1

    def _comma(self) -> None:
        self._take(_BETWEEN)
        if self.text[self.at] == ",":
            self.at += 1
            self._take(_BETWEEN)

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        assert match is not None, "the text was parsed before"
        self.at = match.end()
        return match.group()
