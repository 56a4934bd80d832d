"""Whole runs of a recipe that takes a second: with stages, a cached teacher, evaluations."""

from pathlib import Path

from kdcore.runs.runner import RunRequest, run_all

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


def run(host, text=RECIPE, name="r.toml", **asked):
    """Run a recipe of this text here; the folders of its stages."""
    Path(name).write_text(text)
    return run_all(RunRequest(name, asked.pop("out", Path("runs")), **asked), host)


def flip(path, at=None, bit=2):
    """Turn a bit over, by default in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1 << bit
    path.write_bytes(content)
