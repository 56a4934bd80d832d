"""Other trainers' names for keys of `[train]`, with kdcore's own."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache

WORDS: Mapping[str, tuple[str, str]] = {
    # The key, and a hint.
    "learning_rate": ("lr", "write lr = 2e-5"),
    "num_train_epochs": ("epochs", "write epochs = 3"),
    "num_epochs": ("epochs", "write epochs = 3"),
    "max_steps": ("steps", "write steps = 1000"),
    "per_device_train_batch_size": (
        "batch",
        "write batch = 32, the rows of a whole step; micro_batch says how many go at once",
    ),
    "train_batch_size": ("batch", "write batch = 32, the rows of a whole step"),
    "batch_size": ("batch", "write batch = 32, the rows of a whole step"),
    "gradient_accumulation_steps": (
        "batch",
        "leave it out: batch is the whole step, and micro_batch says how many rows go at once",
    ),
    "bf16": ("precision", 'write precision = "bf16"'),
    "fp16": ("precision", 'write precision = "fp16"'),
    "warmup_steps": ("warmup", "write warmup = 100"),
    "warmup_ratio": ("warmup", "write warmup = 0.1; below 1 it is a share"),
    "lr_scheduler_type": ("schedule", 'write schedule = "cosine"'),
    "optim": ("optimizer", 'write optimizer = "adamw"'),
    "max_grad_norm": ("clip", "write clip = 1.0"),
    "adam_beta1": ("betas", "write betas = [0.9, 0.999]"),
    "adam_beta2": ("betas", "write betas = [0.9, 0.999]"),
    "adam_epsilon": ("eps", "write eps = 1e-8"),
    "logging_steps": ("log_every", "write log_every = 10"),
    "eval_steps": ("eval_every", "write eval_every = 100"),
    "eval_strategy": ("eval_every", 'write eval_every = "epoch", or a number of steps'),
    "save_steps": ("save_every", "write save_every = 100"),
    "save_strategy": ("save_every", 'write save_every = "epoch", or a number of steps'),
    "save_total_limit": ("save_keep", "write save_keep = 2"),
    "metric_for_best_model": ("keep_best", 'write keep_best = "eval/nll"'),
    "load_best_model_at_end": ("keep_best", 'write keep_best = "eval/nll"'),
    "gradient_checkpointing": ("checkpointing", "write checkpointing = true"),
    "torch_compile": ("compile", "write compile = true"),
    "dataloader_num_workers": ("workers", "write workers = 1"),
}


@cache
def ours(key: str) -> tuple[str, str] | None:
    """The key of `[train]` for another trainer's name, also if misspelt, and a hint."""
    near = get_close_matches(key, WORDS, n=1, cutoff=0.8)
    return WORDS[near[0]] if near else None
