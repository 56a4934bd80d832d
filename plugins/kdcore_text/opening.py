"""Text files as lines: decompressed, decoded, and rejected if they are not text."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kdcore import RunError


def _zstandard(path: Path) -> io.BufferedReader:
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


_PACKED: Mapping[str, Callable[[Path], io.BufferedReader]] = {
    ".gz": lambda path: io.BufferedReader(gzip.GzipFile(path)),
    ".bz2": lambda path: io.BufferedReader(bz2.BZ2File(path)),
    ".xz": lambda path: io.BufferedReader(lzma.LZMAFile(path)),  # noqa: SIM115  # callers close it
    ".zst": _zstandard,
}
PACKED = tuple(_PACKED)
"""Endings of compressed files."""

_HEAD = 4096
# UTF-32 first, because one of its byte order marks begins like that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_POINTER = b"version https://git-lfs."
_NO_TEXT = {
    b"\x1f\x8b": "is compressed: let its name end in .gz",
    b"\x28\xb5\x2f\xfd": "is compressed: let its name end in .zst",
    b"PAR1": "is a parquet file: let its name end in .parquet",
    b"ARROW1": "is an Arrow file: let its name end in .arrow",
    b"PK\x03\x04": "is a zip archive or an office document: unpack it, or save it as text",
    b"%PDF-": "is a PDF: extract its text first",
}


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file, without line ends."""
    return (line.rstrip("\r\n") for line in whole_lines(path))


def whole_lines(path: Path) -> Iterator[str]:
    """The lines of a text file with their line ends, "\\n" or "\\r\\n"."""
    with _unpacked(path) as opened:
        head = opened.peek(_HEAD)[:_HEAD]
        _refuse_other_contents(head, path)
        encoding = _encoding(head)
        yield from _utf8(opened, path) if encoding is None else _wide(opened, path, encoding)


def beginning(path: Path) -> str:
    """The first few thousand characters of a text file."""
    with _unpacked(path) as opened:
        head = opened.peek(_HEAD)[:_HEAD]
    return head.decode(_encoding(head) or "utf-8-sig", "ignore")


@contextmanager
def _unpacked(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of a file, decompressed according to its ending."""
    known = _PACKED.get(path.suffix.lower())
    try:
        with path.open("rb") if known is None else known(path) as opened:
            yield opened
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise RunError(f"cannot unpack {path}: {error}; it is damaged, or cut short") from None
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror or error}") from error


def _encoding(head: bytes) -> str | None:
    """The encoding given by a byte order mark."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)


def refuse_pointer(head: bytes, path: Path) -> None:
    """Reject Git LFS pointers, which a clone has instead of large files."""
    if head.startswith(_POINTER):
        raise RunError(
            f"{path} is a pointer of Git LFS, without contents: type `git lfs pull` in its folder"
        )


def _refuse_other_contents(head: bytes, path: Path) -> None:
    refuse_pointer(head, path)
    for first, said in _NO_TEXT.items():
        if head.startswith(first):
            raise RunError(f"{path} {said}")
    marked = head.startswith(tuple(_MARKS))
    if not marked and len(head) >= 16 and head.count(0) * 4 > len(head):
        raise RunError(
            f"{path} is not UTF-8 text: many of its bytes are zero, as in archives and in UTF-16 "
            "without a mark; save it as UTF-8"
        )


def _utf8(opened: io.BufferedReader, path: Path) -> Iterator[str]:
    begin = 0
    for number, line in enumerate(opened):
        text = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
        try:
            yield text.decode()
        except UnicodeDecodeError as error:
            at = begin + len(line) - len(text) + error.start
            raise RunError(
                f"{path} is not UTF-8 at byte {at}; save it as UTF-8 and try again"
            ) from None
        begin += len(line)


def _wide(opened: io.BufferedReader, path: Path, encoding: str) -> Iterator[str]:
    try:
        yield from io.TextIOWrapper(opened, encoding, newline="\n")
    except UnicodeError as error:
        raise RunError(
            f"{path} begins as {encoding.upper()} and is none: {error}; save it as UTF-8"
        ) from None
