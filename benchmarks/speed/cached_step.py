"""Steps of the whole engine, the teacher live or cached; a part of benchmarks/speed/cache.py."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from kdcore import hookimpl

STEPS = 6  # the first of which is not counted

STUDENT = {
    "hidden_size": 128,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
}
TEACHER = {
    "hidden_size": 512,
    "intermediate_size": 2706,
    "num_hidden_layers": 7,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
}
IDS = 5504  # heads are to trunks as theirs are
RECIPE = """\
[student]
model = "{folder}/student"
[data]
use = "stories"
stories = 50
block = 128
rows = "chunk"
[teacher]
{teacher}
[[loss]]
use = "kl"
[train]
lr = 1e-4
steps = {steps}
batch = 8
micro_batch = 8
precision = "fp32"
log_every = 1
eval_first = false
eval_every = 1000
eval_rows = 1
save_every = 1000
"""
LIVE = 'use = "hf"\nmodel = "{folder}/teacher"\ndtype = "fp32"'
CACHED = (
    'use = "cached"\nkind = "topk"\n'
    'teacher = {{use = "hf", model = "{folder}/teacher", dtype = "fp32"}}'
)


def prepare(folder: Path) -> None:
    """Both models, and a tokenizer with as many ids."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    ids = [*letters, *(f"<{n}>" for n in range(IDS - len(letters)))]
    inner = Tokenizer(models.BPE({each: n for n, each in enumerate(ids)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")
    for seed, (name, shape) in enumerate({"student": STUDENT, "teacher": TEACHER}.items()):
        torch.manual_seed(seed)
        config = LlamaConfig(vocab_size=IDS, initializer_range=0.05, **shape)  # type: ignore[arg-type]
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def step_once(variant: str, folder: Path) -> dict[str, float]:
    """A few steps of the whole engine. The store is complete before the first one."""
    import torch

    from kdcore import iter_batches
    from kdcore.plugin.manager import PluginManager
    from kdcore.recipe.recipe import read_recipe
    from kdcore.runs.open import not_begun, open_stage
    from kdcore.runs.runner import RunRequest, run_recipe

    torch.set_num_threads(1)
    text = (CACHED if variant == "cached" else LIVE).format(folder=folder)
    path = folder / f"{variant}.toml"
    path.write_text(RECIPE.format(folder=folder, teacher=text, steps=STEPS))
    host = PluginManager(files=[__file__])
    recipe, out = read_recipe(str(path), host), folder / f"runs-{variant}"
    if variant == "cached":
        with not_begun(recipe, "", out) as asked:
            run = open_stage(asked, upto="ids")
            teacher: Any = run.teacher
            teacher.load(run)
            for batch in iter_batches(run, run.rows("train")):
                teacher.complete(batch)
    run_recipe(recipe, host, RunRequest(out=out, fresh=True))
    gone = [after - before for before, after in pairwise(STARTS)]
    return {"seconds": statistics.median(gone[1:]), "loss": LOSSES[0]}


STARTS: list[float] = []
LOSSES: list[float] = []


@hookimpl
def kdcore_step_start(run: Any, step: int) -> None:
    """This file is a plugin of the runs that it measures, and as such another module."""
    import cached_step

    cached_step.STARTS.append(time.process_time())


@hookimpl
def kdcore_log(run: Any, record: Any) -> None:
    """The loss of each step."""
    import cached_step

    cached_step.LOSSES.append(record.loss)
