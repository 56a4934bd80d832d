"""What padding costs: real tokens a CPU second of rows that are padded, sorted and packed.

    python benchmarks/speed/packing.py

Documents of 150 to 250 tokens, the LLaMA of `tinystories_llama` over 4,096 ids; forward, backward
and optimizer of whole steps of 32 documents. Padding is done as everybody does it: 8 documents as
they were drawn, a mask, the model's own loss over all logits. Put together by length are the
engine's rows = "one", packed its rows = "pack" of 512 tokens; there, head and loss see what is
trained only.
The targets are 1.35 times padding to the longest, and 3 times a fixed 512; and logits that are
those of each document alone, to 1e-5.

Each variant runs in a process of its own, one thread, in turn, three times; medians.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from variants import in_turn

ROUNDS, STEPS, BATCH, MICRO_BATCH, BLOCK, VOCABULARY = 3, 4, 32, 8, 512, 4096
VARIANTS = ("longest", "fixed", "sorted", "packed")
SAID = {
    "longest": "padded to the longest of 8",
    "fixed": "padded to a fixed 512",
    "sorted": 'rows = "one": put together by length',
    "packed": 'rows = "pack"',
}


def student() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=8,
    )
    return LlamaForCausalLM(config)


def documents(count: int) -> list[np.ndarray]:
    drawn = np.random.default_rng(0)
    lengths = drawn.integers(150, 251, count)
    return [drawn.integers(0, VOCABULARY, length).astype(np.int32) for length in lengths]


def rows_of(some: list[np.ndarray], *, packed: bool) -> list[dict[str, Any]]:
    """Rows as the engine lays them."""
    from kdcore.data import packing

    lengths = np.array([len(ids) for ids in some])
    pieces = packing.pack(lengths, BLOCK) if packed else packing.one(lengths, BLOCK, "right")
    rows = []
    for begin, end in zip(pieces.starts[:-1], pieces.starts[1:], strict=True):
        held = pieces.document[begin:end]
        counts = [np.arange(lengths[n], dtype=np.int32) for n in held]
        places = np.concatenate(counts)
        document = held.repeat(lengths[held])
        ids = np.concatenate([some[n] for n in held])
        rows.append({"input_ids": ids, "document": document, "offset": places, "position": places})
    return rows


def groups_of(rows: list[dict[str, Any]], variant: str) -> list[list[list[dict[str, Any]]]]:
    """Steps of micro-batches of rows. A packed row holds about two and a half documents."""
    from kdcore.data.collate import micro_batches

    size = BATCH if variant != "packed" else len(rows) // STEPS
    at_once = MICRO_BATCH if variant != "packed" else MICRO_BATCH // 2
    steps = [rows[at : at + size] for at in range(0, len(rows) - size + 1, size)][:STEPS]
    cut = [micro_batches(step, at_once, by_length=variant == "sorted") for step in steps]
    return [
        [[step[n] for n in some] for some in places]
        for step, places in zip(steps, cut, strict=True)
    ]


def measure(variant: str) -> dict[str, float]:
    torch.set_num_threads(1)
    some = documents(BATCH * STEPS)
    steps = groups_of(rows_of(some, packed=variant == "packed"), variant)
    model = student()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    losses = by_engine(model) if variant in ("sorted", "packed") else by_model(model, variant)

    def step(micro_batches: list[list[dict[str, Any]]]) -> int:
        for loss in losses(micro_batches):
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return sum(len(row["input_ids"]) for rows in micro_batches for row in rows)

    step(steps[0][:1])
    began = time.process_time()
    tokens = sum(step(each) for each in steps)
    rate = tokens / (time.process_time() - began)
    return {"rate": rate, "apart": apart(model, some) if variant == "packed" else 0.0}


def by_engine(model: Any) -> Any:
    """A step's losses as the engine has them."""
    from kdcore_losses import CrossEntropy

    from kdcore import LanguageModel, Split
    from kdcore.api.loss import Term
    from kdcore.data.collate import Collate
    from kdcore.objective.losses import values_of
    from kdcore.objective.objective import Objective, TokenMask

    objective, loss = Objective(LanguageModel(model)), CrossEntropy()
    terms, values = [(Term("ce", "ce", loss, 1.0, "all"), 1.0)], values_of([loss])
    collate = Collate(Split("train", "", np.array([])), VOCABULARY, torch.device("cpu"))

    def losses(micro_batches: list[list[dict[str, Any]]]) -> Any:
        batches = [collate(rows) for rows in micro_batches]
        valid = torch.tensor(float(sum(len(batch.valid) for batch in batches)))
        for batch in batches:
            seen = TokenMask(None, valid, valid, valid)
            yield objective(batch, terms, values, None, lambda states, seen=seen: seen)[0]

    return losses


def by_model(model: Any, variant: str) -> Any:
    """A step's losses as transformers has them."""

    def losses(micro_batches: list[list[dict[str, Any]]]) -> Any:
        tokens = sum(len(row["input_ids"]) - 1 for rows in micro_batches for row in rows)
        for rows in micro_batches:
            lengths = [len(row["input_ids"]) for row in rows]
            time = BLOCK if variant == "fixed" else max(lengths)
            ids = torch.zeros(len(rows), time, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for n, row in enumerate(rows):
                ids[n, : lengths[n]] = torch.from_numpy(row["input_ids"].astype(np.int64))
                mask[n, : lengths[n]] = 1
            labels = ids.where(mask == 1, -100)
            called = {"input_ids": ids, "attention_mask": mask, "labels": labels}
            yield model(**called, use_cache=False, num_items_in_batch=tokens).loss

    return losses


@torch.no_grad()
def apart(model: Any, some: list[np.ndarray]) -> float:
    """The largest difference of a packed document's logits from those of the document alone."""
    from kdcore import LanguageModel, Split
    from kdcore.data.collate import Collate

    head = LanguageModel(model.eval())
    collate = Collate(Split("train", "", np.array([])), VOCABULARY, torch.device("cpu"))
    rows = rows_of(some, packed=True)[:8]
    batch = collate(rows)
    packed = head.logits(head.states(batch)).view(*batch.input_ids.shape, -1)
    apart = 0.0
    for n, row in enumerate(rows):
        for document in np.unique(row["document"]):
            here = torch.from_numpy(np.flatnonzero(row["document"] == document))
            ids = torch.from_numpy(some[document].astype(np.int64))[None]
            alone = model(input_ids=ids, use_cache=False).logits[0]
            apart = max(apart, float((packed[n, here] - alone).abs().max()))
    return apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.variant:
        print(json.dumps(measure(asked.variant)))
        return
    found = in_turn(__file__, VARIANTS, ROUNDS)
    rates = {variant: each["rate"] for variant, each in found.items()}
    print("| rows | real tokens a CPU second | of padding to the longest |\n|---|---|---|")
    for variant, said in SAID.items():
        print(f"| {said} | {rates[variant]:.0f} | {rates[variant] / rates['longest']:.2f} |")
    print(f"\npacked, of padding to the longest: {rates['packed'] / rates['longest']:.2f}")
    print(f"packed, of a fixed 512: {rates['packed'] / rates['fixed']:.2f}")
    print(f"largest difference of logits from the document alone: {found['packed']['apart']:.1e}")


if __name__ == "__main__":
    main()
