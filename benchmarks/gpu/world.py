"""Where a GPU day happens: its folder, its device, and whether it is only rehearsed."""

from __future__ import annotations

import gc
import resource
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / name) for name in ("", "speed")]

from roofline import MODELS, Model  # noqa: E402

if TYPE_CHECKING:
    import torch

GIB = 2**30


class Skipped(Exception):
    """A part that cannot be done here, and why."""


@dataclass(frozen=True)
class World:
    """One day: `rehearse` is the same with tiny shapes, on a CPU where there is no GPU."""

    folder: Path
    rehearse: bool
    teacher: str = "qwen-7b"  # of qwen_kl_sft

    @property
    def made(self) -> Path:
        """Models, tokenizers and texts, which are large and can be made again."""
        return self.folder / "made"

    @property
    def results(self) -> Path:
        """One JSON file for each part."""
        return self.folder / "results"

    @property
    def runs(self) -> Path:
        """Run folders."""
        return self.folder / "runs"

    @property
    def device(self) -> torch.device:
        """The GPU where there is one."""
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def window(self) -> int:
        """Steps that are measured together, and those of the warm-up."""
        return 2 if self.rehearse else 10

    def shape(self, name: str) -> Model:
        """A model of the recipes; in a rehearsal one of its kind that is tiny."""
        whole = MODELS[name]
        if not self.rehearse:
            return whole
        tiny = {"hidden": 32, "inner": 64, "layers": 2, "heads": 4, "vocabulary": self.ids(name)}
        return replace(whole, groups=min(whole.groups, 2) if whole.kind != "gpt2" else 4, **tiny)

    def ids(self, name: str) -> int:
        """How many ids the model's tokenizer has."""
        if self.rehearse:
            return 400
        return 151_665 if name.startswith("qwen") else MODELS[name].vocabulary


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def start_peak() -> None:
    """From here on memory is measured; what was left behind before is given back."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> dict[str, float]:
    """GiB at the fullest: what torch took of the GPU, with CUDA's own, and what tensors took.

    `taken` is what `kdcore plan` estimates. On a CPU it is the largest resident set.
    """
    import torch

    if not torch.cuda.is_available():
        taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"taken": taken / GIB, "tensors": taken / GIB}
    free, total = torch.cuda.mem_get_info()
    context = max(0, total - free - torch.cuda.memory_reserved())
    taken = context + torch.cuda.max_memory_reserved()
    return {
        "taken": taken / GIB,
        "tensors": torch.cuda.max_memory_allocated() / GIB,
        "CUDA": context / GIB,
    }


def target(
    world: World,
    what: str,
    measured: float | None,
    most: float | None = None,
    *,
    least: float | None = None,
    always: bool = False,
) -> dict[str, Any]:
    """What a figure should be; a rehearsal's is judged only where it means something there."""
    judged = always or not world.rehearse
    return {"what": what, "measured": measured, "least": least, "most": most, "judged": judged}


def is_met(target: dict[str, Any]) -> bool:
    """Whether a figure is what it should be, as far as it is judged."""
    measured, least, most = (target[key] for key in ("measured", "least", "most"))
    if not target["judged"]:
        return True
    if measured is None:
        return False
    return (least is None or measured >= least) and (most is None or measured <= most)
