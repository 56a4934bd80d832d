"""What a cached teacher costs to read, and what it saves.

    python benchmarks/speed/cache.py            all tables; --write, --read or --step for one

Writing: tokens a CPU second into a store that grows to five million tokens, by half a million,
next to what as many bytes of fresh memory take by themselves: the page cache that a growing store
fills is such memory. Where a large store is slower than a small one, so is that.

Reading: tokens a CPU second out of a store of each kind, a vocabulary of 151,936, micro-batches of
4,096 tokens in rows of 512 that lie in random order, up to tensors that losses take. The target is
5 million a second and core, and 6.1 bytes for each of the k ids.

A step: a student and a teacher with the proportions of Qwen2.5-0.5B and -7B (the head to the trunk,
and one model to the other), whole engine, the teacher live and cached as top-32. Its loss is the KL
of both at temperature 1. The target is 0.35 of the live teacher's CPU seconds.

Each variant runs in a process of its own, one thread, three times; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cached_step import prepare, step_once

ROUNDS = 3
KINDS = ("nll", "topk", "sampled")
VOCABULARY, ROW, ROWS_AT_ONCE, DOCUMENTS = 151_936, 512, 8, 1024
PIECE, PIECES = 1 << 19, 9  # tokens
# Writing


def write_once(kind: str, folder: Path) -> dict[str, float]:
    """Fills a store in order; CPU seconds of each piece, and of as much fresh memory."""
    import numpy as np
    from kdcore_cached.catalogue import kind_of
    from kdcore_cached.store import Store

    from kdcore import Split

    known = {"kind": kind, "k": 32, "draws": 32, "seed": 0, "vocabulary": VOCABULARY}
    made = kind_of(known)
    split = Split("train", "benchmark", np.full(PIECE * PIECES // ROW, ROW))
    store = Store(folder / f"{kind}-{os.getpid()}", known, split, made, print)
    values, found, held = _values(made, 1 << 12), {}, []
    for piece in range(PIECES):
        start = time.process_time()
        for at in range(piece * PIECE, (piece + 1) * PIECE, 1 << 12):
            store.put(np.arange(at, at + (1 << 12)), values)
        found[f"store {piece}"] = time.process_time() - start
        start = time.process_time()
        held.append(np.ones(PIECE * made.bytes_per_token, np.uint8))
        found[f"memory {piece}"] = time.process_time() - start
    return found


# Reading


def read_once(kind: str, folder: Path) -> dict[str, float]:
    """Fills a store with anything, then reads it."""
    import numpy as np
    import torch
    from kdcore_cached.teacher import CachedTeacher

    from kdcore import Data, Split, Teacher
    from kdcore.testing.fakes import tiny_tokenizer

    torch.set_num_threads(1)
    teacher = CachedTeacher(teacher=_named(Teacher), kind=kind)  # type: ignore[arg-type]
    run: Any = SimpleNamespace(
        caches=folder,
        device=torch.device("cpu"),
        data=_named(Data),
        tokenizer=tiny_tokenizer(),
        say=print,
        main=True,
        recipe=SimpleNamespace(components=list),
    )
    teacher.load(run)
    split = Split("train", "benchmark", np.full(DOCUMENTS, ROW))
    order = np.random.default_rng(0).permutation(DOCUMENTS)
    batches = [
        _batch(order[n : n + ROWS_AT_ONCE], split) for n in range(0, DOCUMENTS, ROWS_AT_ONCE)
    ]
    store = teacher.store(batches[0])
    for start in range(0, store.tokens, 1 << 14):
        some = np.arange(start, min(start + (1 << 14), store.tokens))
        store.put(some, _values(store.kind, len(some)))
    used: list[float] = []
    for batch in (*batches[:8], *batches):
        start_of = time.process_time()
        if kind == "nll":
            teacher.nll(batch)(batch.valid, batch.labels[batch.valid])
        else:
            teacher.read(batch)(batch.valid)
        used.append(time.process_time() - start_of)
    tokens = len(batches[0].valid)
    return {"rate": tokens / statistics.median(used[8:]), "bytes": store.kind.bytes_per_token}


def _named(base: Any) -> Any:
    """A component that does nothing."""
    from kdcore import component

    @component
    class Named(base):
        name = "named"

    return Named()


def _batch(documents: Any, split: Any) -> Any:
    import torch

    from kdcore import Batch

    document = torch.from_numpy(documents)[:, None].expand(-1, ROW).contiguous()
    offset = torch.arange(ROW).expand(len(documents), -1).contiguous()
    labels = torch.randint(VOCABULARY, (len(documents), ROW))
    labels[:, -1] = -100
    flat = labels.flatten()
    return Batch(
        input_ids=labels.clamp(min=0),
        position_ids=offset,
        attention_mask=None,
        document=document,
        offset=offset,
        labels=flat,
        valid=(flat != -100).nonzero()[:, 0],
        vocabulary=VOCABULARY,
        split=split,
    )


def _values(kind: Any, tokens: int) -> list[Any]:
    import numpy as np

    drawn = np.random.default_rng(tokens)
    shapes = [(tokens,) if array.width is None else (tokens, array.width) for array in kind.arrays]
    return [
        drawn.integers(1, 100, shape).astype(array.dtype)
        for array, shape in zip(kind.arrays, shapes, strict=True)
    ]


# Tables


def measure(variant: Sequence[str]) -> dict[str, float]:
    """The medians of what a variant gives, each time in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    found: list[Mapping[str, float]] = []
    for _ in range(ROUNDS):
        command = [sys.executable, __file__, "--variant", *variant]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        found.append(json.loads(done.stdout.decode().splitlines()[-1]))
    return {key: statistics.median(each[key] for each in found) for key in found[0]}


def tell_writing(folder: Path) -> None:
    print("| kind | million tokens | million tokens a CPU second | fresh memory |")
    print("|---|---|---|---|")
    for kind in KINDS:
        found = measure(["write", kind, str(folder)])
        for piece in range(0, PIECES, 2):
            rates = (PIECE / found[f"{what} {piece}"] / 1e6 for what in ("store", "memory"))
            columns = " | ".join(f"{rate:.1f}" for rate in rates)
            print(f"| {kind} | {(piece + 1) * PIECE / 1e6:.1f} | {columns} |", flush=True)


def tell_reading(folder: Path) -> None:
    print("| kind | bytes/token | million tokens a CPU second |\n|---|---|---|")
    rates = {}
    for kind in KINDS:
        found = measure(["read", kind, str(folder)])
        rates[kind] = found["rate"]
        print(f"| {kind} | {found['bytes']:.0f} | {found['rate'] / 1e6:.1f} |", flush=True)
    print(f"\nreading topk, of 5 million tokens a second: {rates['topk'] / 5e6:.2f}")


def tell_step(folder: Path) -> None:
    prepare(folder)
    print("| teacher | CPU seconds a step | loss of the first step |\n|---|---|---|")
    seconds = {}
    for variant in ("live", "cached"):
        found = measure(["step", variant, str(folder)])
        seconds[variant] = found["seconds"]
        print(f"| {variant} | {found['seconds']:.3f} | {found['loss']:.4f} |", flush=True)
    ratio = seconds["cached"] / seconds["live"]
    print(f"\na step with the cached teacher, of the live one's: {ratio:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for table in ("write", "read", "step"):
        parser.add_argument(f"--{table}", action="store_true")
    parser.add_argument("--variant", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.variant:
        what, variant, place = asked.variant
        once = {"write": write_once, "read": read_once, "step": step_once}[what]
        print(json.dumps(once(variant, Path(place))))
        return
    every = not (asked.write or asked.read or asked.step)
    with tempfile.TemporaryDirectory() as folder:
        if asked.write or every:
            tell_writing(Path(folder))
        if asked.read or every:
            tell_reading(Path(folder))
        if asked.step or every:
            tell_step(Path(folder))


if __name__ == "__main__":
    main()
