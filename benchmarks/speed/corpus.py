"""What tokenising a corpus costs: one document of 100 MB, and many short ones next to datasets.map.

    python benchmarks/speed/corpus.py
    python benchmarks/speed/corpus.py --megabytes 10 --documents 20000
    python benchmarks/speed/corpus.py --megabytes 190 --documents 2000000 --ways documents rows

The same words as one document and as documents of 15 words, through `Text` and its token cache, and
through a plain `datasets` map with the same tokenizer (a BPE of 4,096 ids), each in a process of
its own: CPU seconds, memory of its largest process, tokens. Both read a file of a document a line.
"rows" also holds out a hundredth of the documents, packs the others in rows of 256, and reads a
thousand of the rows at random.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdcore_text import Text
    from transformers import PreTrainedTokenizerBase

WORDS = 15  # of a document
WAYS = ("one document", "documents", "rows", "datasets.map")
BLOCK, READ = 256, 1000


def write_words(path: Path, size: int, per_line: int | None) -> Path:
    """Words of 2 to 9 letters, the likeliest of them often; None: all in lines of one document."""
    made = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(made.choices(letters[:20], k=made.randint(2, 9))) for _ in range(20_000)]
    weights = [1 / (n + 1) for n in range(len(words))]
    with path.open("w") as file:
        while file.tell() < size:
            line = made.choices(words, weights, k=(per_line or WORDS) * 1000)
            for at in range(0, len(line), per_line or WORDS):
                file.write(" ".join(line[at : at + (per_line or WORDS)]) + "\n")
    return path


def write_tokenizer(folder: Path, text: Path) -> None:
    """A BPE with byte fallback, trained on the first two megabytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([text.read_text()[: 2 << 20]], trainer)
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>").save_pretrained(folder)


def tokenised(way: str, text: Path, folder: Path) -> int:
    """How many tokens it makes."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if way == "datasets.map":
        import datasets

        lines = datasets.load_dataset("text", data_files=str(text), split="train")
        made = lines.map(lambda some: {"ids": tokenizer(some["text"])["input_ids"]}, batched=True)
        return sum(len(part.values) for part in made.data.column("ids").chunks)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugins"))
    from kdcore_text import Text

    from kdcore.data.tokenized import tokenise

    if way == "rows":
        return _packed(
            Text(path=str(text), separator="\n", validation_share=0.01, block=BLOCK), tokenizer
        )
    separator = "\n" if way == "documents" else None
    data = Text(path=str(text), separator=separator, validation=str(text))
    store = tokenise(data, "train", tokenizer)
    return int(store.lengths.sum())


def _packed(data: Text, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the rows that are read would have in all."""
    draw, tokens = random.Random(0), 0
    for split in ("train", "validation"):
        rows = data.make_rows(split, tokenizer, seed=0, epoch=0)
        some = [len(rows[draw.randrange(len(rows))]["input_ids"]) for _ in range(READ)]
        tokens += round(sum(some) / READ * len(rows))
    return tokens


def measured(way: str, text: Path, folder: Path) -> tuple[float, float, str]:
    """CPU seconds, MB and tokens of a process of its own, without what its imports take."""
    command = [sys.executable, __file__, "--way", way, str(text), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, memory, tokens = done.stdout.split()[-3:]
    return float(seconds), float(memory), tokens


def one(way: str, text: str, folder: str) -> None:
    """The part of the process that is measured."""
    import datasets
    import torch  # noqa: F401

    datasets.disable_progress_bars()
    used = resource.getrusage(resource.RUSAGE_SELF)
    before = used.ru_utime + used.ru_stime
    tokens = tokenised(way, Path(text), Path(folder))
    used, theirs = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu = used.ru_utime + used.ru_stime - before + theirs.ru_utime + theirs.ru_stime
    print(cpu, max(used.ru_maxrss, theirs.ru_maxrss) / 1024, tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--documents", type=int, nargs="*", default=[200_000, 1_000_000])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--way", nargs=3)
    asked = parser.parse_args()
    if asked.way:
        one(*asked.way)
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HF_HOME"] = name
        os.environ["HF_DATASETS_CACHE"] = f"{name}/datasets"
        print("| what | CPU seconds | MB | tokens |\n|---|---|---|---|")
        text = write_words(folder / "whole.txt", asked.megabytes << 20, None)
        write_tokenizer(folder, text)
        for way in asked.ways if asked.ways is WAYS else ():
            _print(f"{asked.megabytes} MB: {way}", measured(way, text, folder))
        for count in asked.documents:
            short = folder / f"short{count}.txt"
            with text.open() as whole, short.open("w") as file:
                file.writelines(line for line, _ in zip(whole, range(count), strict=False))
            for way in (way for way in asked.ways if way != "one document"):
                _print(f"{count:,} of {WORDS} words: {way}", measured(way, short, folder))


def _print(said: str, found: tuple[float, float, str]) -> None:
    seconds, memory, tokens = found
    print(f"| {said} | {seconds:.1f} | {memory:,.0f} | {int(tokens):,} |", flush=True)


if __name__ == "__main__":
    main()
