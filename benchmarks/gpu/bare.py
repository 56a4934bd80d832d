"""The same steps as one would write them: transformers, torch and a loop; with Liger where it is.

Rows, losses, precision and optimizer are those of the recipe, weights of the same shapes. Rows that
hold several documents attend across them. A selection's reference losses are given, as out of a
full cache. Logits exist whole; the rows at once are the largest of the batch, its half, its
quarter, ... that fit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import founding
import standins
import torch
from engine import pace, runs_of
from torch import Tensor
from torch.nn import functional as F
from world import Skipped, World, peak, start_peak, synchronise

from kdcore import Batch, iter_batches
from kdcore.runs.open import not_begun, open_stage

STEPS = 3  # windows; the last one counts


class Loop:
    """A stage's models, batches and step."""

    def __init__(self, world: World, name: str, *, liger: bool) -> None:
        self.world, self.stage = world, founding.stage_of(world, name)
        self.batches, self.lengths = _batches(world, name)
        self.half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        self.student = self._student(name)
        self.teachers = [self._teacher(each) for each in self.stage.teachers]
        if liger:
            _with_liger(self.student)
        trained = [p for p in self.student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.01, fused=True)
        self.trained = trained
        self.rows = self.stage.rows

    def _student(self, name: str) -> Any:
        from transformers import AutoModelForCausalLM

        if self.stage.lora:
            from peft import LoraConfig, get_peft_model

            base = self._teacher(self.stage.student)
            wanted = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
            return (
                get_peft_model(base, wanted).float()
                if self.world.rehearse
                else get_peft_model(base, wanted)
            )
        config = standins.config(self.world, self.stage.student)
        with torch.device(self.world.device):
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()

    def _teacher(self, name: str) -> Any:
        from transformers import AutoModelForCausalLM

        dtype = torch.float32 if self.world.rehearse else self.half
        folder = standins.model(self.world, name)
        made = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(self.world.device)
        return made.eval().requires_grad_(False)

    def step(self, batch: Batch) -> None:
        """One optimizer step over the whole batch, some rows at a time."""
        total = (batch.labels != -100).sum().clamp(min=1)
        share = self.stage.trained if self.stage.scored else 1.0
        for some in _split(batch, self.rows):
            (self._loss(some) / (total * share)).backward()
        if self.stage.clips:
            torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _loss(self, some: dict[str, Tensor]) -> Tensor:
        """Summed over the rows' valid tokens."""
        labels = some.pop("labels").flatten()
        device = self.world.device.type
        with torch.autocast(device, self.half, enabled=not self.world.rehearse):
            logits = self.student(**some, use_cache=False).logits.flatten(0, 1)
        valid = (labels != -100).nonzero().flatten()
        student, labels = logits[valid].float(), labels[valid]
        nll = F.cross_entropy(student, labels, reduction="none")
        if self.stage.scored:
            reference = torch.rand_like(nll) * 12
            kept = (nll.detach() - reference).topk(round(self.stage.trained * len(nll))).indices
            return nll[kept].sum()
        if not self.teachers:
            return nll.sum()
        ids = student.shape[-1]
        with torch.no_grad():
            outputs = [
                t(**some, use_cache=False).logits.flatten(0, 1)[valid] for t in self.teachers
            ]
            teacher = torch.stack([each[:, :ids].float() for each in outputs]).mean(0) / 2
        p, q = teacher.log_softmax(-1), (student[:, : teacher.shape[-1]] / 2).log_softmax(-1)
        kl = F.kl_div(q, p, log_target=True, reduction="sum")
        return 0.5 * nll.sum() + 0.5 * kl


def _batches(world: World, name: str) -> tuple[list[Batch], Tensor]:
    """Whole batches of the stage as the engine lays them, and the lengths of all its rows."""
    recipe, (_, _, stage) = founding.read(world, name, weights=True), name.partition(".")
    with not_begun(recipe, stage, Path(runs_of(world))) as asked:
        run = open_stage(asked, upto="ids")
        rows: Any = run.rows("train")
        run.micro_batch = founding.stage_of(world, name).rows
        few = rows.subset(range(run.micro_batch * min(8, len(rows) // run.micro_batch)))
        return list(iter_batches(run, few)), torch.as_tensor(rows.lengths).float()


def _split(batch: Batch, rows: int) -> Iterator[dict[str, Tensor]]:
    labels = batch.labels.view_as(batch.input_ids)
    for at in range(0, len(batch.input_ids), rows):
        some = slice(at, at + rows)
        found = {"input_ids": batch.input_ids[some], "labels": labels[some]}
        if batch.attention_mask is not None:
            found["attention_mask"] = batch.attention_mask[some]
        yield found


def _with_liger(model: Any) -> None:
    """Liger's kernels in the layers; losses and heads stay as they are."""
    kernels = import_module("liger_kernel.transformers")
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    apply = getattr(kernels, f"apply_liger_kernel_to_{base.config.model_type}", None)
    if apply is None:
        raise Skipped(f"liger has no kernels for {base.config.model_type!r}")
    losses = ("cross_entropy", "fused_linear_cross_entropy")
    apply(model=base, **{n: False for n in losses if n in signature(apply).parameters})


def measure(world: World, name: str, *, liger: bool = False) -> dict[str, Any]:
    """The stage's last window of steps by the bare loop."""
    if liger and find_spec("liger_kernel") is None:
        raise Skipped("liger-kernel is not installed")
    if liger and world.device.type != "cuda":
        raise Skipped("liger needs an NVIDIA GPU")
    loop = Loop(world, name, liger=liger)
    _fit(loop)
    start_peak()
    seconds = [_window(loop, at) for at in range(STEPS)][-1]
    tokens = float(loop.lengths.mean()) * loop.stage.rows
    valid = sum(int((batch.labels != -100).sum()) for batch in loop.batches) / len(loop.batches)
    found = pace(world, name, seconds, tokens, valid)
    return {**found, "rows at once": loop.rows, "memory": peak()}


def _window(loop: Loop, at: int) -> float:
    """Seconds a step."""
    synchronise()
    began = time.perf_counter()
    for step in range(loop.world.window):
        loop.step(loop.batches[(at * loop.world.window + step) % len(loop.batches)])
    synchronise()
    return (time.perf_counter() - began) / loop.world.window


def _fit(loop: Loop) -> None:
    """Halve the rows at once until a step has the memory."""
    while True:
        try:
            loop.step(loop.batches[0])
            return
        except torch.OutOfMemoryError:
            if loop.rows == 1:
                raise
        loop.optimizer.zero_grad(set_to_none=True)
        loop.rows = (loop.rows + 1) // 2
        start_peak()
