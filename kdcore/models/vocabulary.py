"""Vocabularies: verified agreement of tokenizers, the cut to shared ids, and bytes per id."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from kdcore.errors import RunError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_log = logging.getLogger("kdcore")
_PROBE = "The 1st probe:  naïve “quotes”, 2024-05-17, 東京 and\n\tdef f(x): return x_1 + 3.14 🙂"


def verify_same_ids(
    student: PreTrainedTokenizerBase, others: Mapping[str, PreTrainedTokenizerBase]
) -> int:
    """The number of ids, from 0, that have the same string for the student and all others.

    Where one tokenizer has more ids than another, the shared ones end with the shorter. Different
    strings within the shared ids are an error that names the first five.
    """
    shared = _size(student)
    for name, other in others.items():
        _refuse_conflicts(student, name, other)
        shared = min(shared, _size(other))
        if _encoded(student, shared) != _encoded(other, shared):
            _log.warning(
                "the tokenizer of %s has the student's ids but splits text differently: this "
                "teacher reads the student's tokens, which it was not trained on",
                name,
            )
    _keep_eos(student, shared)
    return shared


def cut_to(shared: int, widths: Mapping[str, int], eos: int | None = None) -> int:
    """The number of ids that all logits are cut to: shared ones for which every head has a row.

    `eos` ends the student's texts and must be one of them.
    """
    vocabulary = min(shared, *widths.values())
    if eos is not None and eos >= vocabulary:
        narrow = min(widths, key=lambda name: widths[name])
        raise RunError(
            f"the head of the {narrow} has {widths[narrow]:,} rows, and texts end with the id "
            f"{eos}; its model does not fit the student's tokenizer"
        )
    rows = ", ".join(f"{name} {width:,}" for name, width in widths.items())
    _log.info("vocabulary: %s rows; logits are cut to %s shared ids", rows, f"{vocabulary:,}")
    return vocabulary


def bytes_per_id(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """UTF-8 bytes of each id in running text, int32 [ids]; 0 for special tokens.

    Exact for byte-level tokenizers. Where words include the space before them ("▁"), the first word
    of a text counts one byte too many.
    """
    return np.array([len(each) for each in id_bytes(tokenizer)], dtype=np.int32)


def id_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """The UTF-8 bytes of each id in running text; empty for special tokens."""
    texts = [b""] * _size(tokenizer)
    kind = _decoder(tokenizer)
    for token, index in tokenizer.get_vocab().items():
        texts[index] = _bytes_of(token, kind)
    for index, added in tokenizer.added_tokens_decoder.items():
        texts[index] = b"" if added.special else _added_bytes(added.content, kind)
    for index in tokenizer.all_special_ids:  # None for a special token without an id
        if index is not None and index < len(texts):
            texts[index] = b""
    return texts


def _size(tokenizer: PreTrainedTokenizerBase) -> int:
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def _strings(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {index: token for token, index in tokenizer.get_vocab().items()}


def _refuse_conflicts(
    student: PreTrainedTokenizerBase, name: str, other: PreTrainedTokenizerBase
) -> None:
    ours, theirs = _strings(student), _strings(other)
    shared = range(min(_size(student), _size(other)))
    conflicts = [n for n in shared if ours.get(n) != theirs.get(n)]
    if not conflicts:
        return
    named = "\n".join(
        f"    {n}: {_shown(ours, n)} to the student, {_shown(theirs, n)} to {name}"
        for n in conflicts[:4]
    )
    raise RunError(
        f"the tokenizers differ: {len(conflicts):,} of {len(shared):,} ids mean something else to "
        f"{name} than to the student, so their logits cannot be compared; the first are\n{named}\n"
        '[teacher] use = "aligned" lets a teacher read its own tokens'
    )


def _shown(strings: Mapping[int, str], index: int) -> str:
    return repr(strings[index]) if index in strings else "nothing"


def _encoded(tokenizer: PreTrainedTokenizerBase, shared: int) -> list[int]:
    ids: list[int] = tokenizer.encode(_PROBE, add_special_tokens=False)
    return [n for n in ids if n < shared]


def _keep_eos(student: PreTrainedTokenizerBase, shared: int) -> None:
    """Raise RunError if the cut drops EOS: the student would never learn to stop."""
    eos = student.eos_token_id
    if isinstance(eos, int) and eos >= shared:
        raise RunError(
            f"the student ends texts with id {eos} ({student.eos_token!r}), but a teacher's ids "
            f"end at {shared - 1}; give [tokenizer] the teacher's model"
        )


def _decoder(tokenizer: PreTrainedTokenizerBase) -> str:
    """How tokens become text: "bytes", "wordpiece" or "pieces"."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    steps = "" if backend is None else f"{backend.decoder!r} {backend.pre_tokenizer!r}"
    if "ByteLevel(" in steps:
        return "bytes"
    return "wordpiece" if "WordPiece(" in steps else "pieces"


def _added_bytes(content: str, kind: str) -> bytes:
    """Of a token that was added as text. Gemma adds runs of "▁", which are spaces in texts."""
    return content.replace("▁", " ").encode() if kind == "pieces" else content.encode()


def _bytes_of(token: str, kind: str) -> bytes:
    if kind == "bytes":
        return bytes(_byte_of().get(letter, 0x3F) for letter in token)
    if kind == "wordpiece":
        return token.removeprefix("##").encode() if token.startswith("##") else f" {token}".encode()
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace("▁", " ").encode()


@cache
def _byte_of() -> Mapping[str, int]:
    """The byte of each letter in a byte-level vocabulary."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters: Mapping[int, str] = bytes_to_unicode()  # type: ignore[no-untyped-call]
    return {letter: byte for byte, letter in letters.items()}


def warn_tokenizer_mismatch(
    student: PreTrainedTokenizerBase, others: Mapping[str, PreTrainedTokenizerBase]
) -> None:
    """Warn if a teacher ends, pads or formats texts differently from the student.

    That equal ids have equal strings is verified before; this is about their use.
    """
    for name, other in others.items():
        if differing := list(_mismatches(student, other)):
            _log.warning(
                "the %s uses other special tokens than the student: %s. Its predictions there "
                "follow its own convention; a [tokenizer] of the teacher's model would agree",
                name,
                "; ".join(differing),
            )


def _mismatches(student: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> Iterator[str]:
    if student.eos_token_id != other.eos_token_id:
        yield f"texts end with {student.eos_token!r} here, with {other.eos_token!r} there"
    # A tokenizer without a pad token cannot disagree.
    pads = (student.pad_token_id, other.pad_token_id)
    if None not in pads and pads[0] != pads[1]:
        yield f"the pad token is {student.pad_token!r} here, {other.pad_token!r} there"
    templates = (student.chat_template, other.chat_template)
    if None not in templates and templates[0] != templates[1]:
        yield "the chat templates differ, and dialogues use the student's"
