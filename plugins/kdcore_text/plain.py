"""Plain text files: their documents, and what they are when they are not UTF-8."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdcore import RunError

_MARK = "<|endoftext|>"  # what such files commonly have between documents


class PlainFiles:
    """The documents of text files, one file after another."""

    def __init__(self, paths: Sequence[Path], separator: str | None) -> None:
        self._paths, self._separator = paths, separator

    def count(self) -> int:
        """How many documents there are. It takes reading them."""
        return sum(1 for _ in self.read())

    def read(self) -> Iterator[str]:
        """The documents that hold anything, without the newlines around them."""
        for path in self._paths:
            yield from self._documents(path)

    def _documents(self, path: Path) -> Iterator[str]:
        document = list[str]()
        for line in lines(path):
            if self._separates(line):
                yield from _joined(document)
                document = []
            elif self._separator is None and line.strip() == _MARK:
                raise RunError(
                    f"{path} has lines that are {_MARK}, and documents are split at blank lines; "
                    f'set separator = "{_MARK}" in [data]'
                )
            else:
                document.append(line)
            if self._separator == "\n":
                yield from _joined(document)
                document = []
        yield from _joined(document)

    def _separates(self, line: str) -> bool:
        return not line.strip() if self._separator is None else line.strip() == self._separator


def _joined(lines: Sequence[str]) -> Iterator[str]:
    text = "\n".join(lines).strip("\n")
    if text.strip():
        yield text


def lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, without their ends."""
    with path.open("rb") as opened:
        begin = 0
        for number, line in enumerate(opened):
            text = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
            try:
                yield text.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                at = begin + len(line) - len(text) + error.start
                raise RunError(_not_utf8(path, at)) from None
            begin += len(line)


def _not_utf8(path: Path, byte: int) -> str:
    return f"{path} is not UTF-8 at byte {byte}; save it as UTF-8 and try again"
