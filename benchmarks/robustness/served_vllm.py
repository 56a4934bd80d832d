"""A served teacher against the same model in this process: the losses of a few training steps.

    vllm serve MODEL --served-model-name NAME --max-logprobs 20 --dtype float32
    python benchmarks/robustness/served_vllm.py http://127.0.0.1:8000 --model MODEL --name NAME

MODEL is a folder or a name on the hub, for the server and for this script. A small student trains
12 steps on stories with the teacher `served`, then with the k likeliest ids of the same model in
this process, its softmax in float32 as vLLM's. Prints the losses of each step. Exit code 1 where
they differ by more than 1e-5.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from kdcore_hf import HfTeacher
from torch import Tensor

import kdcore
from kdcore import Batch, SparseLogits, Teacher, component, hookimpl

LARGEST = 1e-5  # nats


@component
class TopKHere(HfTeacher):
    """The k likeliest ids of a model in this process, exact."""

    name = "top-k-here"
    k: int = 20

    def ids_known(self) -> int | None:
        """The k likeliest."""
        return self.k

    def gives_losses(self) -> bool:
        """No: of k ids only."""
        return False

    def read(self, batch: Batch) -> Any:
        """The model's logits, cut to the k likeliest and the mass of all others."""
        whole = super().read(batch)

        def at(positions: Tensor) -> SparseLogits:
            best = whole(positions).log_softmax(-1).topk(self.k)  # in float32, as vLLM
            logs = best.values.double()
            rest = torch.log(-torch.expm1(logs.logsumexp(-1, keepdim=True)))
            return SparseLogits(best.indices, torch.cat([logs, rest], -1).float())

        return at


@hookimpl
def kdcore_teachers() -> Sequence[type[Teacher]]:
    """The teacher in this process."""
    return [TopKHere]


def recipe(name: str, model: str, teacher: dict[str, Any], steps: int) -> dict[str, Any]:
    """A llama of two narrow layers that reads stories in the tokenizer of the teacher."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    return {
        "name": name,
        "student": {"config": {"model_type": "llama", "num_attention_heads": 4, **shape}},
        "tokenizer": {"use": "hf", "model": model},
        "data": {"use": "stories", "stories": 60, "validation": 20, "block": 128},
        "teacher": teacher,
        "loss": [{"use": "kl"}],
        "train": {"steps": steps, "batch": 4, "lr": 1e-3, "log_every": 1, "eval_every": steps},
    }


def losses(table: dict[str, Any], out: str) -> tuple[list[float], float]:
    """The loss of each step, and the seconds of the run."""
    begun = time.monotonic()
    plugins = [str(Path(__file__).resolve())]
    lines = kdcore.run(table, out=out, plugins=plugins).metrics
    found = [line["loss"] for line in lines if line.get("loss") is not None]
    return found, time.monotonic() - begun


def main(arguments: Sequence[str] | None = None) -> int:
    """The table; 1 where a loss differs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url", nargs="?", help="of a running server")
    parser.add_argument("--model", help="the served model, as a folder or a name on the hub")
    parser.add_argument("--name", help="the name that the server knows it by; default: --model")
    parser.add_argument("--api", default="vllm", choices=("vllm", "sglang"))
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--steps", type=int, default=12)
    given = parser.parse_args(arguments)
    if given.url is None or given.model is None:
        print("skipped: no server was given (an address, and --model with what it serves)")
        return 0
    within = {"use": "hf", "model": given.model}
    served = {"use": "served", "url": given.url, "model": given.name or given.model}
    teachers = {
        "served": served | {"k": given.k, "api": given.api},
        "here": within | {"use": "top-k-here", "k": given.k},
    }
    with tempfile.TemporaryDirectory() as out:
        found = {
            name: losses(recipe(name, given.model, teacher, given.steps), out)
            for name, teacher in teachers.items()
        }
    return report(found, given.k)


def report(found: dict[str, tuple[list[float], float]], k: int) -> int:
    """Print the table; 1 where a loss differs."""
    print("| step | served | in this process | difference |")
    print("|---|---|---|---|")
    largest = 0.0
    each = zip(found["served"][0], found["here"][0], strict=True)
    for n, (served, here) in enumerate(each, 1):
        largest = max(largest, abs(served - here))
        print(f"| {n} | {served:.7f} | {here:.7f} | {abs(served - here):.1e} |")
    print(f"\nlargest difference {largest:.1e} over {len(found['here'][0])} steps, k = {k}")
    said = ", ".join(f"{name} {seconds:.0f}" for name, (_, seconds) in found.items())
    print(f"seconds of wall time: {said}")
    return int(largest > LARGEST)


if __name__ == "__main__":
    sys.exit(main())
