"""What a GPU day does, the most telling parts first, each with the seconds that it may take."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from world import World

Measure = Callable[["World"], dict[str, Any]]
LIBRARIES = ("torch", "transformers", "triton", "bitsandbytes", "liger-kernel", "peft", "kdcore")
FIRST = (
    *("rho_qwen", "qwen_kl_sft.student", "tinystories_llama", "babyllama.student"),
    *("babyllama.gpt2", "qwen_kl_sft.teacher", "babyllama.llama"),
)


@dataclass(frozen=True)
class Part:
    """A process of its own. Libraries are imported when it runs."""

    name: str
    seconds: float
    measure: Measure


def parts(*, rehearse: bool = False) -> list[Part]:
    """All of them, in order; a rehearsal leaves out what is the same but for its shapes."""
    found = [Part("machine", 60, machine), Part("tests", 240, _trial("gpu_tests"))]
    found.append(Part("head", 240, _head))
    for stage in FIRST:
        found.append(Part(f"{stage}, kdcore", 240, partial(_kdcore, stage)))
        found.append(Part(f"{stage}, bare", 120, partial(_bare, stage)))
    for precision in ("bf16", "fp16"):
        found.append(Part(f"learning, {precision}", 180, _trial("learning", precision)))
    found.append(Part("kill and resume", 180, _trial("kill_and_resume")))
    found.append(Part("out of memory", 180, _trial("out_of_memory")))
    found += [Part(f"decision, {d}", 120, _trial("decision", d)) for d in DECISIONS]
    found += [Part(f"option, {o}", 120, _trial("option", o)) for o in OPTIONS]
    found += [
        Part(f"card, {c}", 120, _trial("smaller_card", c))
        for c in (CARDS[6:8] if rehearse else CARDS)
    ]
    found += [Part(f"{stage}, Liger", 90, partial(_bare, stage, liger=True)) for stage in FIRST]
    return [*found, Part("learning, fp32", 180, _trial("learning", "fp32"))]


# The keys in trials.py, which a test holds equal: nothing is imported here.
OPTIONS = (
    *("as it is", "a teacher in 4 bits", "a teacher in 8 bits", "an offloaded teacher"),
    *("paged_adamw_8bit", "LoRA", "Liger's kernels", "checkpointing"),
    *("answers of the student", "answers of the teacher", "hidden states", "an aligned teacher"),
)
DECISIONS = (
    *("bf16 weights, rho_qwen", "bf16 weights, qwen_kl_sft.student", "CUDA graphs, rho_qwen"),
    *("CUDA graphs, babyllama.student", "both, rho_qwen", "a compiled trunk, qwen_kl_sft.student"),
)
CARDS = (
    *("8 GB, tinystories_llama", "8 GB, babyllama.student", "16 GB, rho_qwen"),
    *("16 GB, babyllama.gpt2, checkpointing", "24 GB, rho_qwen", "24 GB, babyllama.gpt2"),
    *("24 GB, qwen_kl_sft.student of 3B", "24 GB, qwen_kl_sft.teacher, 3B"),
    "40 GB, qwen_kl_sft.student of 7B",
)


def _trial(name: str, *arguments: str) -> Measure:
    def measure(world: World) -> dict[str, Any]:
        import trials

        found: dict[str, Any] = getattr(trials, name)(world, *arguments)
        return found

    return measure


def _head(world: World) -> dict[str, Any]:
    from head_table import measure

    return measure(world)


def _kdcore(stage: str, world: World) -> dict[str, Any]:
    from engine import measure
    from trials import within_plan

    return within_plan(world, measure(world, stage))


def _bare(stage: str, world: World, *, liger: bool = False) -> dict[str, Any]:
    from bare import measure

    return measure(world, stage, liger=liger)


def machine(world: World) -> dict[str, Any]:
    """What it is, and what it reaches: a large product and a copy."""
    import torch

    found: dict[str, Any] = {"card": "no GPU", "python": platform.python_version()}
    found["versions"] = {name: _version(name) for name in LIBRARIES}
    if not torch.cuda.is_available():
        return found
    size = 512 if world.rehearse else 8192
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    pieces = torch.randn(size, size, 8, device="cuda")
    properties = torch.cuda.get_device_properties(0)
    found |= {"card": properties.name, "memory, GB": properties.total_memory / 1e9}
    found |= {"CUDA": torch.version.cuda, "TFLOP/s": 2 * size**3 / _seconds(lambda: a @ a) / 1e12}
    moved = 2 * pieces.numel() * 4
    return {**found, "GB/s": moved / _seconds(lambda: pieces.clone()) / 1e9}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _seconds(work: Callable[[], object], times: int = 10) -> float:
    from world import synchronise

    for _ in range(3):
        work()
    synchronise()
    began = time.perf_counter()
    for _ in range(times):
        work()
    synchronise()
    return (time.perf_counter() - began) / times
