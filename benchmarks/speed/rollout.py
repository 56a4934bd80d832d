"""Tokens written a CPU second: kdcore's writer compared with `generate` of transformers.

    python benchmarks/speed/rollout.py

64 prompts of mixed length, sampled at temperature 1, answers that end by themselves (an end token
of one in fifty). `generate` gets all prompts as one batch, padded at the left and sorted, and each
prompt alone. CPU seconds of one thread, the best of `--rounds`; a table on standard output.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from kdcore import LanguageModel, Prompt, Sampling, sample

PROMPTS, END = 64, 0


def main() -> None:
    """Print a line for each way."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--hidden", type=int, default=256)
    asked.add_argument("--layers", type=int, default=4)
    asked.add_argument("--vocabulary", type=int, default=8192)
    asked.add_argument("--new", type=int, default=64)
    asked.add_argument("--rounds", type=int, default=3)
    options = asked.parse_args()
    torch.set_num_threads(1)
    model = made(options.hidden, options.layers, options.vocabulary)
    drawn = np.random.default_rng(0)
    prompts = sorted(
        (drawn.integers(1, options.vocabulary, n).tolist() for n in drawn.integers(8, 64, PROMPTS)),
        key=len,
    )
    ways: dict[str, Callable[[], int]] = {
        "kdcore, one group": lambda: ours(model, prompts, options.new),
        "generate, one sorted batch": lambda: theirs(model, prompts, options.new),
        "generate, one prompt at a time": lambda: sum(
            theirs(model, [each], options.new) for each in prompts
        ),
    }
    for name, way in ways.items():
        rates = []
        for _ in range(options.rounds):
            began = time.process_time()
            tokens = way()
            rates.append(tokens / (time.process_time() - began))
        print(f"{name:32} {max(rates):8,.0f} tokens a CPU second")


def made(hidden: int, layers: int, vocabulary: int) -> LlamaForCausalLM:
    """A model whose end token has about one chance in fifty everywhere."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    biased = torch.nn.Linear(hidden, vocabulary, bias=True)
    with torch.no_grad():
        biased.weight.copy_(model.lm_head.weight)
        biased.bias.zero_()
        biased.bias[END] = np.log(vocabulary / 49)
    model.lm_head = biased
    return model


def ours(model: LlamaForCausalLM, prompts: list[list[int]], new: int) -> int:
    """How many tokens kdcore writes."""
    asked = [Prompt(tuple(ids), n) for n, ids in enumerate(prompts)]
    found = sample(LANGUAGE.setdefault(id(model), LanguageModel(model)), asked, sampling(new))
    return sum(len(one.ids) for one in found)


LANGUAGE: dict[int, LanguageModel] = {}


def sampling(new: int) -> Sampling:
    """As `generate` is asked."""
    return Sampling(new, ends=frozenset({END}))


def theirs(model: LlamaForCausalLM, prompts: list[list[int]], new: int) -> int:
    """How many tokens before the padding `generate` writes."""
    time_ = max(map(len, prompts))
    ids = torch.tensor([[END] * (time_ - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (time_ - len(row)) + [1] * len(row) for row in prompts])
    config = GenerationConfig(
        max_new_tokens=new, do_sample=True, top_k=0, eos_token_id=END, pad_token_id=END
    )
    with torch.no_grad():
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    written = out[:, time_:]
    ended = (written == END).int().cumsum(1)
    return int(((ended == 0).sum(1) + (ended[:, -1] > 0)).sum())


if __name__ == "__main__":
    main()
