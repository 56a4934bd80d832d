"""Every causal language model that transformers knows, made small: are rows what they are alone?

    python benchmarks/robustness/architectures.py             all of them, as a table
    python benchmarks/robustness/architectures.py llama phi   those with one of these words

Each model has two layers of width 32, random weights, and where it can a window of 12 tokens. Its
logits are made by the engine's `LanguageModel` for documents of 1 to 16 tokens that are packed,
padded, and whole rows, and compared with those that the model itself gives each document alone:
the largest difference, of the largest logit. "refused" is an error that says to train on
documents one by one. "by pieces" attends to each document by itself, "by mask" as transformers
does. What cannot be made from these sizes is listed below the table. Exit code 1 where something
differs by more than 1e-4.
"""

from __future__ import annotations

import inspect
import multiprocessing
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from kdcore import KdcoreError, LanguageModel, Split
from kdcore.data.collate import Collate

VOCABULARY, WIDTH, SECONDS, BYTES, LIMIT = 64, 32, 60, 8 << 30, 1e-4
LARGEST = 30_000_000  # parameters: some configs hold a second model that these sizes do not reach
ROWS = {
    "packed": [(5, 9, 2), (16,), (1, 15), (7,)],
    "padded": [(16,), (7,), (2,)],
    "whole": [(16,), (16,), (16,)],
}
WIDTHS = ("hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "ffn_dim")
LAYERS = ("num_hidden_layers", "n_layer")
HEADS = ("num_attention_heads", "n_head", "num_heads")
SIZES: Mapping[str, Any] = {
    **dict.fromkeys(WIDTHS, WIDTH),
    **dict.fromkeys(LAYERS, 2),
    **dict.fromkeys(HEADS, 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("mamba_d_state", "state_size", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "mamba_n_groups"), 1),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **{"num_key_value_heads": 2, "head_dim": 8, "num_experts_per_tok": 2},
    **{"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2},
    **{"sliding_window": 12, "use_sliding_window": True, "max_window_layers": 0},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "is_decoder": True},
}


def rows_of(lengths: Sequence[Sequence[int]]) -> list[dict[str, np.ndarray]]:
    """Rows of documents of these lengths."""
    drawn, made, documents = np.random.default_rng(0), [], 0
    for row in lengths:
        place = np.concatenate([np.arange(n) for n in row])
        document = np.repeat(np.arange(documents, documents + len(row)), row)
        documents += len(row)
        ids = drawn.integers(3, VOCABULARY, len(place))
        made.append({"input_ids": ids, "document": document, "offset": place, "position": place})
    return made


def model_of(kind: str) -> Any:
    """Small; with grouped heads, where its attention takes them."""
    config = CONFIG_MAPPING[kind]
    taken = {*inspect.signature(config.__init__).parameters, *config.attribute_map}
    taken |= set(getattr(config, "__dataclass_fields__", ()))
    sizes = {name: size for name, size in SIZES.items() if name in taken or name == "is_decoder"}
    ungrouped = {name: size for name, size in sizes.items() if name != "num_key_value_heads"}
    ids = torch.arange(3, 19)[None]
    for some in (sizes, ungrouped):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config(**some)).eval()
        if sum(p.numel() for p in model.parameters()) > LARGEST:
            raise ValueError("larger than it was asked for")
        try:
            model(input_ids=ids, use_cache=False)
        except RuntimeError:
            if some is ungrouped:
                raise
        else:
            return model


def alone(model: Any, row: Mapping[str, np.ndarray]) -> torch.Tensor:
    """The logits of a row's documents, each run by itself."""
    found = []
    for document in np.unique(row["document"]):
        ids = torch.from_numpy(row["input_ids"][row["document"] == document])[None]
        found.append(model(input_ids=ids, use_cache=False).logits[0, :, :VOCABULARY])
    return torch.cat(found)


def compared(kind: str) -> list[str]:
    """How a model packs, and how far each kind of rows is from documents alone."""
    model, split = model_of(kind), Split("train", "", np.array([16]))
    expected = {name: [alone(model, row) for row in rows_of(each)] for name, each in ROWS.items()}
    language_model = LanguageModel(model)
    collate = Collate(split, VOCABULARY, torch.device("cpu"))
    found = ["by pieces" if language_model._packs else "by mask"]
    for name, each in ROWS.items():
        batch = collate(rows_of(each))
        try:
            states = language_model.states(batch)
        except KdcoreError:
            found.append("refused")
            continue
        logits = language_model.logits(states).unflatten(0, batch.input_ids.shape)
        apart = [
            (logits[n, : len(one), :VOCABULARY] - one).abs().max() / one.abs().max()
            for n, one in enumerate(expected[name])
        ]
        found.append(f"{float(max(apart)):.1e}")
    return found


def child(kind: str, end: Connection) -> None:
    """One model, whose config may ask for any amount of memory."""
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    try:
        with torch.no_grad():
            end.send(compared(kind))
    except BaseException as error:
        end.send(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:90]}")


def each(kinds: Sequence[str]) -> Iterator[tuple[str, list[str] | str]]:
    """What was found of each model, or why nothing was."""
    forked = multiprocessing.get_context("fork")
    for kind in kinds:
        here, there = forked.Pipe(duplex=False)
        process = forked.Process(target=child, args=(kind, there))
        process.start()
        there.close()
        try:
            found = here.recv() if here.poll(SECONDS) else f"not within {SECONDS} seconds"
        except EOFError:
            found = "ended without a word"
        process.kill()
        process.join()
        yield kind, found


def main() -> int:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    words = sys.argv[1:]
    kinds = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    asked = [kind for kind in kinds if not words or any(word in kind for word in words)]
    print(f"transformers {transformers.__version__}, torch {torch.__version__}\n")
    print("| model | packed rows | packed | padded | whole |\n|---|---|---|---|---|")
    numbers, unmade, refused = list[float](), dict[str, str](), 0
    for kind, found in each(asked):
        if isinstance(found, str):
            unmade[kind] = found
            continue
        print(f"| {kind} | {' | '.join(found)} |", flush=True)
        refused += "refused" in found
        numbers += [float(one) for one in found[1:] if one != "refused"]
    made, wrong = len(asked) - len(unmade), [one for one in numbers if not one <= LIMIT]
    print(f"\n{made} models, {refused} of which refuse packed rows; {len(wrong)} differences above")
    print(f"{LIMIT:.0e}, the largest of the others {max(n for n in numbers if n <= LIMIT):.1e}")
    print("\nNot made:")
    for kind, why in unmade.items():
        print(f"* {kind}: {why}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
