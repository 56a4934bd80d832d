"""What `kdcore plan` would say of the founding recipes on a card of so many GB; no GPU is needed.

    python benchmarks/gpu/planned.py 24
    python benchmarks/gpu/planned.py 16 babyllama.gpt2 --set train.checkpointing=true

Nothing is run: the shapes are traced, as always, with a card pretended. Predicted, not measured.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from unittest.mock import patch

from founding import NAMES, plan_of, read
from world import World

from kdcore.errors import KdcoreError


@contextmanager
def card(gigabytes: float) -> Iterator[None]:
    """While this lasts, torch says that there is a card with bf16 and so much memory."""
    properties = SimpleNamespace(total_memory=int(gigabytes * 1e9))
    with (
        patch("torch.cuda.is_available", lambda: True),
        patch("torch.cuda.is_bf16_supported", lambda *_, **__: True),
        patch("torch.cuda.get_device_properties", lambda *_: properties),
        patch("torch._subclasses.fake_tensor.init_gpu_context", lambda *_: None),
    ):
        yield


def row(world: World, name: str, gigabytes: float, sets: list[str]) -> str:
    """A line of the table."""
    recipe = read(world, name, sets, weights=False)
    with card(gigabytes):
        plan = plan_of(recipe)
    found = plan.estimate
    if found is None:
        return f"| {name} | not known: {plan.unknown[0]} | | | |"
    peak, batch = found.peak / 1e9, plan.stage.train.drawn
    if plan.stage.train.batch_documents and plan.rows and plan.documents:
        batch = math.ceil(batch * plan.rows / plan.documents)
    times = math.ceil(batch / found.micro_batch)
    fits = "yes" if peak <= gigabytes else "no"
    return f"| {name} | {found.micro_batch} of {batch} | {times} | {peak:.1f} | {fits} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("gigabytes", type=float)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(NAMES))
    parser.add_argument("--set", action="append", default=[], metavar="K=V", dest="sets")
    parser.add_argument(
        "--teacher", default="7B", choices=["1.5B", "3B", "7B"], help="of qwen_kl_sft"
    )
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes")
    asked = parser.parse_args()
    print(f"Predicted for a card of {asked.gigabytes:g} GB, not measured.\n")
    print("| recipe | rows at once | times | GB | fits |\n|---|---|---|---|---|", flush=True)
    with TemporaryDirectory() as folder:
        world = World(Path(folder), asked.rehearse, f"qwen-{asked.teacher.lower()}")
        for name in asked.stages or NAMES:
            try:
                print(row(world, name, asked.gigabytes, asked.sets), flush=True)
            except KdcoreError as error:
                raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
