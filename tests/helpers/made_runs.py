"""Run folders written by hand: what a run leaves, with numbers that the test chooses."""

import json
from pathlib import Path

import numpy as np

from kdcore.checksums import keep
from kdcore.document_losses import DOCUMENTS, document_losses

TOKENS = np.array([10, 30, 20, 40, 25, 15])  # of the held-out documents

RESOLVED = """
name = "{name}"
seed = {seed}
[student.config]
model_type = "llama"
[train]
steps = 100
eval_seed = {eval_seed}
{more}
[[loss]]
use = "{loss}"
"""


def documents(nll, noise=0.0, seed=0):
    """Losses of the documents whose mean over tokens is `nll`."""
    each = np.random.default_rng(seed).standard_normal(len(TOKENS)) * noise
    each -= (each * TOKENS).sum() / TOKENS.sum()
    sums = np.stack([TOKENS, 4 * TOKENS, (nll + each) * TOKENS], 1)
    return document_losses(sums.astype(float), TOKENS * 7)


def made(
    name,
    seed=0,
    values=(3.0, 2.0, 1.0),
    *,
    loss="ce",
    more="",
    tokens=1000,
    seconds=10.0,
    cpu_seconds=None,
    noise=0.0,
    kept=True,
    tokenizer="t",
    device="a processor",
    eval_seed=0,
    scores=lambda nll: {},
    out=Path("runs"),
):
    """A finished run, evaluated after steps 0, 50, 100, ... at even tokens and seconds."""
    folder = out / f"{name}-{abs(hash((name, seed, loss, more))) % 16**8:08x}"
    (folder / "final").mkdir(parents=True)
    resolved = RESOLVED.format(name=name, seed=seed, eval_seed=eval_seed, more=more, loss=loss)
    (folder / "recipe.toml").write_text(resolved)
    (folder / "resolved.toml").write_text(resolved)
    (folder / "fingerprints.json").write_text(json.dumps({"tokenizer": tokenizer}))
    processor = {"name": device, "threads": 1}
    (folder / "env.json").write_text(json.dumps({"devices": [], "processor": processor}))
    lines, last = [], len(values) - 1
    for n, nll in enumerate(values):
        step, share = 50 * n, n / max(1, last)
        about = {"stage": "", "step": step, "tokens": round(tokens * share), "time": 1.0}
        line = {**about, "elapsed": seconds * share, "eval/nll": nll}
        if cpu_seconds is not None:
            line["cpu_seconds"] = cpu_seconds * share
        if nll is not None:
            line |= {f"eval/{key}": value for key, value in scores(nll).items()}
            if kept:
                documents(nll, noise, seed).save(folder, step)
        lines.append(line)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if kept:
        keep(folder, DOCUMENTS, folder / DOCUMENTS)
    return folder
