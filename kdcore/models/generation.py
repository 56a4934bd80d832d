"""Text generation with transformers, and the tokens that stop it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kdcore.data.batch import Row
from kdcore.data.encoding import own_beginning
from kdcore.models.causal_lm import eval_mode
from kdcore.sharding.wrapping import is_sharded

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[int]],
    *,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    special_tokens: bool = False,
    bos: Sequence[int] = (),
    ends: Collection[int] = (),
) -> list[str]:
    """The model's continuation of each prompt, a text or ids, without the prompt.

    Temperature 0 is greedy; top_k 0 and top_p 1 keep all ids. All prompts run as one left-padded
    batch. Texts begin with `bos`, as `bos_of` gives it for a run's rows; with `special_tokens`,
    with what the tokenizer adds. Texts that already begin so, and prompts given as ids, stay
    unchanged. `ends` are end-of-text ids in addition to the model's and the tokenizer's. Restores
    the mode of every module and all random states.
    """
    begins = own_beginning(tokenizer) if special_tokens else list(bos)
    rows = [_ids(tokenizer, prompt, begins) for prompt in prompts]
    time = max(map(len, rows))
    ids = torch.tensor([[0] * (time - len(row)) + row for row in rows], device=model.device)
    # By length, not by id: where padding is EOS, a mask by id would hide real EOS tokens.
    mask = torch.tensor([[0] * (time - len(row)) + [1] * len(row) for row in rows])
    config = _config(model, tokenizer, max_new_tokens, temperature, top_k, top_p, ends)
    with _undisturbed(model, seed):
        out: Any = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask.to(model.device),
            generation_config=config,
            synced_gpus=is_sharded(model),
        )
    return [
        _written(tokenizer, row, new) for row, new in zip(rows, out[:, time:].tolist(), strict=True)
    ]


def _written(tokenizer: PreTrainedTokenizerBase, given: list[int], new: list[int]) -> str:
    """The generated text. Some tokenizers drop the space before a word at the start of a text."""
    begin, whole = (
        str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in (given, given + new)
    )
    if whole.startswith(begin):
        return whole[len(begin) :]
    return str(tokenizer.decode(new, skip_special_tokens=True))


def _ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[int], begins: list[int]
) -> list[int]:
    """The prompt's ids; an empty prompt is the start of a text."""
    if isinstance(prompt, str):
        ids: list[int] = tokenizer.encode(prompt, add_special_tokens=False)
        ids = ids if ids[: len(begins)] == begins else [*begins, *ids]
    else:
        ids = [int(each) for each in prompt]
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else _eos(tokenizer)
    return ids or [start]


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer.eos_token_id if isinstance(tokenizer.eos_token_id, int) else 0


def _config(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    more_ends: Collection[int],
) -> GenerationConfig:
    from transformers import GenerationConfig

    own = model.generation_config.eos_token_id if model.generation_config else None
    own = own if isinstance(own, list) else [own]
    ends = {*own, tokenizer.eos_token_id, *more_ends} - {None}
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    arguments: dict[str, Any] = sampling if temperature > 0 else {}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        eos_token_id=sorted(ends) or None,
        pad_token_id=_eos(tokenizer),
        **arguments,
    )


@contextmanager
def _undisturbed(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Evaluation mode and a seeded random state; restores both."""
    devices = [model.device] if model.device.type == "cuda" else []
    with eval_mode(model), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


_ROWS = 256  # enough to contain each of them


def learned_stop_tokens(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The special tokens that end a stretch of learned tokens, in the first rows.

    Empty where rows have no labels, so that everything is learned.
    """
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    found = set[int]()
    for n in range(min(_ROWS, len(rows))):
        labels = rows[n].get("labels")
        if labels is not None:
            learned = np.append(np.asarray(labels) != -100, False)
            found.update(np.asarray(labels)[learned[:-1] & ~learned[1:]].tolist())
    return found & special


def add_stop_tokens(model: PreTrainedModel, ends: Collection[int]) -> None:
    """Add these to the end-of-text ids of the model's generation config."""
    config = model.generation_config
    if ends and config is not None:
        own = config.eos_token_id
        config.eos_token_id = sorted({*(own if isinstance(own, list) else [own]), *ends} - {None})
