"""What the engine costs compared with a bare loop: the LLaMA of `tinystories_llama`, with logging.

    python benchmarks/speed/loop.py

Both train the same model on the same batches, cut from the engine's own rows, with the same fused
AdamW, clipping and schedule of a constant. The bare loop is model, loss, backward, clip and step,
with a line of JSON every 10 steps; the engine is `kdcore run` as it is, with metrics.jsonl, log.txt
and plain progress. The tiny model, of 256 tokens a step and 512 ids, shows the milliseconds a step
that do not hang on the model's size; that of the recipe, over 2,048 ids, the tokens per second.
The targets are 0.5 ms of CPU a step, and 0.97 of the bare loop's tokens per second.

Each variant runs in a process of its own, one thread, in turn, three times; medians of CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from variants import in_turn

from kdcore import hookimpl

ROUNDS = 3


class Shape(NamedTuple):
    """A model and its rows."""

    width: int
    inner: int
    layers: int
    heads: int
    groups: int  # of heads that share keys and values
    vocabulary: int
    block: int
    steps: int


SHAPES = {
    "tiny": Shape(16, 42, 1, 4, 4, 512, 32, 600),
    "four": Shape(256, 768, 4, 16, 8, 2048, 128, 60),
}
VARIANTS = [f"{loop}-{shape}" for shape in SHAPES for loop in ("bare", "engine")]
RECIPE = """\
[student.config]
model_type = "llama"
hidden_size = {width}
intermediate_size = {inner}
num_hidden_layers = {layers}
num_attention_heads = {heads}
num_key_value_heads = {groups}
[tokenizer]
use = "bpe"
vocab_size = {vocabulary}
[data]
use = "stories"
stories = 2000
block = {block}
rows = "chunk"
[[loss]]
use = "ce"
[train]
lr = 1e-4
schedule = "constant"
steps = {steps}
batch = 8
micro_batch = 8
chunk = 1024
compile = false
precision = "fp32"
eval_first = false
eval_every = 100000
eval_rows = 1
save_every = 100000
"""


def recipe_of(shape: str, folder: Path) -> Path:
    path = folder / f"{shape}.toml"
    path.write_text(RECIPE.format(**SHAPES[shape]._asdict()))
    return path


def engine(shape: str, folder: Path) -> list[float]:
    """CPU seconds of each step, logging included."""
    from kdcore.plugin.manager import PluginManager
    from kdcore.recipe.recipe import read_recipe
    from kdcore.runs.runner import RunRequest, run_recipe

    host = PluginManager(files=[__file__])
    run_recipe(
        read_recipe(str(recipe_of(shape, folder)), host), host, RunRequest(out=folder / "runs")
    )
    return [after - before for before, after in pairwise(STARTS)]


def bare(shape: str, folder: Path) -> list[float]:
    """The same, as one would write it."""
    import torch
    from torch.nn import functional as F

    from kdcore import iter_batches
    from kdcore.plugin.manager import PluginManager
    from kdcore.recipe.recipe import read_recipe
    from kdcore.runs.open import not_begun, open_stage
    from kdcore.training.student import make_student

    recipe = read_recipe(str(recipe_of(shape, folder)), PluginManager())
    with not_begun(recipe, "", folder / "runs") as asked:
        run = open_stage(asked, upto="ids")
        run.micro_batch = 8
        stage = run.recipe
        model = make_student(stage.student, run.tokenizer, (), seed=0, device=run.device)
        rows = run.rows("train")[: 8 * min(40, len(run.rows("train")) // 8)]
        batches = list(iter_batches(run, rows))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    log, losses, used = (folder / "bare.jsonl").open("a"), [], list[float]()
    model.train()
    for step in range(SHAPES[shape].steps):
        began = time.process_time()
        batch = batches[step % len(batches)]
        logits = model(input_ids=batch.input_ids, use_cache=False).logits.flatten(0, 1)
        loss = F.cross_entropy(logits, batch.labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        if step % 10 == 9:
            log.write(json.dumps({"step": step, "loss": float(torch.stack(losses).mean())}) + "\n")
            losses = []
        used.append(time.process_time() - began)
    return used


STARTS: list[float] = []


@hookimpl
def kdcore_step_start(run: Any, step: int) -> None:
    """This file is a plugin of the run that it measures, and as such another module."""
    import __main__

    __main__.STARTS.append(time.process_time())


def measure(variant: str) -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    loop, _, shape = variant.partition("-")
    with tempfile.TemporaryDirectory() as name:
        used = (engine if loop == "engine" else bare)(shape, Path(name))
    # Logging is every tenth step's: a median would leave it out.
    some = sorted(used[10:])
    trimmed = some[: len(some) * 19 // 20]
    return {"seconds": statistics.fmean(trimmed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.variant:
        print(json.dumps(measure(asked.variant)))
        return
    found = {name: each["seconds"] for name, each in in_turn(__file__, VARIANTS, ROUNDS).items()}
    print("| model | bare, ms a step | engine | more | of the bare loop's tokens per second |")
    print("|---|---|---|---|---|")
    for shape, given in SHAPES.items():
        plain, ours = found[f"bare-{shape}"], found[f"engine-{shape}"]
        said = f"{given.layers} layers of {given.width}"
        ms = f"{plain * 1e3:.2f} | {ours * 1e3:.2f} | {(ours - plain) * 1e3:.2f}"
        print(f"| {said} | {ms} | {plain / ours:.3f} |")
    more = (found["engine-tiny"] - found["bare-tiny"]) * 1e3
    print(f"\nthe engine, milliseconds a step more than a bare loop: {more:.2f}")
    ratio = found["bare-four"] / found["engine-four"]
    print(f"tokens per second, of the bare loop's: {ratio:.3f}")


if __name__ == "__main__":
    main()
