"""Hashes of tokenizers, folders and values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_BLOCK = 1 << 12  # bytes read per tensor, at its start and in its middle

# Keys of a config about how and where it was saved.
_NOT_CONTENT = ("transformers_version", "_name_or_path", "base_model_name_or_path")


def digest() -> blake2b:
    """The hash function used here."""
    return blake2b(digest_size=16)


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of how text becomes ids, and of special ids; not of padding, truncation, templates."""
    hashed = digest()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        hashed.update(type(tokenizer).__name__.encode())
        hashed.update(_canonical(tokenizer.get_vocab()))
    else:
        text = backend.to_str()
        # Truncation and padding come before this, and calls modify them in place.
        hashed.update(text[text.index('"added_tokens"') :].encode())
    hashed.update(_canonical({key: str(x) for key, x in tokenizer.special_tokens_map.items()}))
    return hashed.hexdigest()


def folder_hash(path: str | Path) -> str:
    """A hash of a model folder: its config, and headers and samples of its weights.

    Independent of path and modification times. Without safetensors files, every file is read.
    """
    folder = Path(path)
    weights = sorted(folder.glob("*.safetensors"))
    configs = [folder / name for name in ("adapter_config.json", "config.json")]
    hashed = digest()
    for file in [each for each in configs if each.is_file()]:
        hashed.update(_canonical(_content(file)))
    rest = [] if weights else sorted(file for file in folder.iterdir() if file.is_file())
    for file in weights or [each for each in rest if each not in configs]:
        hashed.update(f"{file.name} {file.stat().st_size}".encode())
        for some in _samples(file) if weights else _whole(file):
            hashed.update(some)
    return hashed.hexdigest()


def _content(config: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    return {key: value for key, value in read.items() if key not in _NOT_CONTENT}


def _samples(file: Path) -> Iterator[bytes]:
    """The header of a safetensors file, and the start and middle of each tensor."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = opened.read(size)
        yield header
        for name, tensor in sorted(json.loads(header).items()):
            if name != "__metadata__":
                begin, end = (size + 8 + offset for offset in tensor["data_offsets"])
                yield _at(opened, begin, end)
                yield _at(opened, (begin + end) // 2, end)


def _at(opened: BinaryIO, begin: int, end: int) -> bytes:
    opened.seek(begin)
    return opened.read(min(_BLOCK, end - begin))


def _whole(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while some := opened.read(1 << 20):
            yield some


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
