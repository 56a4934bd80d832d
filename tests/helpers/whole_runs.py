"""Whole runs of a recipe that takes a second: with stages, a cached teacher, evaluations."""

import json
import os
import re
from pathlib import Path

RECIPE = """
[tokenizer]
use = "bpe"
vocab_size = 270

[data]
use = "stories"
stories = 20
validation = 4
block = 32

[student.config]
model_type = "llama"
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 1
num_attention_heads = 2

[train]
steps = 4
batch = 4
micro_batch = 4
lr = 1e-2
log_every = 1
eval_every = 2
save_every = 2
eval_rows = 4

[[loss]]
use = "ce"
"""


def recipe_text(changes, more=""):
    """RECIPE with other values, {"train.steps": 9}; None leaves a key out. `more` comes last."""
    top = [f"{key} = {json.dumps(value)}\n" for key, value in changes.items() if "." not in key]
    blocks = re.split(r"(?m)^(?=\[)", RECIPE.replace("\n\n", "\n").lstrip("\n"))
    known = {block.splitlines()[0].strip("[]"): block for block in blocks if block}
    for place, value in changes.items():
        table, _, key = place.rpartition(".")
        if table:
            line = "" if value is None else f"{key} = {json.dumps(value)}\n"
            text, found = re.subn(rf"(?m)^{key} = .*\n", line, known[table])
            known[table] = text if found else text + line
    return "".join([*top, *known.values(), more.lstrip("\n")])


STAGES = (
    RECIPE
    + """
[stage.big]
[stage.small.teacher]
use = "cached"
kind = "topk"
k = 8
teacher = {use = "hf", model = "@big"}
[[stage.small.loss]]
use = "kl"
"""
)


def write(path, text):
    """Write a file that another process may be reading: it holds the text, or what it held."""
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


def run(host, text=RECIPE, name="r.toml", **asked):
    """Run a recipe of this text here; the folders of its stages."""
    from kdcore.runs.runner import RunRequest, run_all

    write(Path(name), text)
    return run_all(RunRequest(name, asked.pop("out", Path("runs")), **asked), host)


def flip(path, at=None, bit=2):
    """Turn a bit over, by default in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1 << bit
    path.write_bytes(content)
