"""Whole runs of tiny students on several processes, whole or divided between them."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from whole_runs import run

from kdcore.plugin.manager import PluginManager
from kdcore.sharding.wrapping import whole
from kdcore.training.step import TrainStep

RECIPE = """
name = "NAME"
[tokenizer]
use = "hf"
model = "TEACHER"

[data]
use = "stories"
stories = 30
validation = 5
block = 32

[student.config]
model_type = "llama"
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
tie_word_embeddings = false

[train]
shard = "full"
steps = 20
batch = 7
micro_batch = 2
lr = 1e-2
precision = "fp32"
log_every = 1
eval_every = 20
eval_first = false
save_every = 20
eval_rows = 5
"""
CE = '\n[[loss]]\nuse = "ce"\n'
TEACHER = '\n[teacher]\nuse = "hf"\nmodel = "TEACHER"\nSHARD\n'
KL = TEACHER + '\n[[loss]]\nuse = "kl"\n'
RHO = CE + '\n[selection]\nuse = "rho"\nkeep = 0.6\nreference = {use = "hf", model = "TEACHER"}\n'


def recipe(teacher, objective=CE, name="run", shard="", **options):
    """The text of a recipe; `options` replace those of [train] and of the student's config."""
    text = RECIPE + objective
    for key, value in options.items():
        lines = [f"{key} = {value}" if x.startswith(f"{key} = ") else x for x in text.split("\n")]
        added = text.replace("[train]\n", f"[train]\n{key} = {value}\n")
        text = "\n".join(lines) if "\n".join(lines) != text else added
    return text.replace("TEACHER", str(teacher)).replace("NAME", name).replace("SHARD", shard)


_COLLECTIVES = (
    *("all_gather_single", "all_gather_into_tensor"),  # the name before torch 2.13
    *("reduce_scatter_single", "reduce_scatter_tensor"),
    *("all_gather", "all_reduce", "barrier", "broadcast", "broadcast_object_list"),
    *("gather", "gather_object", "reduce", "scatter"),
)


def note_collectives():
    """From now on in this process: each collective call, with the shape of its first tensor."""
    seen = []

    def noted(name, call):
        def calling(*arguments, **named):
            shapes = [each.shape for each in arguments if isinstance(each, torch.Tensor)]
            seen.append((name, *shapes[:1]))
            return call(*arguments, **named)

        return calling

    for name in _COLLECTIVES:
        if call := getattr(torch.distributed, name, None):
            setattr(torch.distributed, name, noted(name, call))
    return seen


def train(rank, folder, texts, sets=()):
    """Run these recipes here, in each process; the gradients of each one's last step."""
    os.chdir(folder)
    last, apply = {}, TrainStep.apply

    def noting(step):
        named = step.objective.model.named_parameters()
        last.update({n: whole(p.grad).clone() for n, p in named if p.grad is not None})
        apply(step)

    TrainStep.apply = noting
    gradients = []
    for n, text in enumerate(texts):
        last.clear()
        run(PluginManager(off=["panel"]), text, name=f"{n}.toml", sets=sets)
        gradients.append(dict(last))
    return gradients


def outcome(folder, name="run"):
    """The final weights of a run, and its records."""
    (path,) = Path(folder, "runs").glob(f"{name}-*")
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return load_file(path / "final" / "model.safetensors"), [json.loads(line) for line in lines]
