"""kdcore compared with the chunked losses of Liger and TRL, on the same work, on a CPU.

    python -m venv peers
    peers/bin/pip install -c constraints.txt torch
    peers/bin/pip install -c constraints.txt .
    peers/bin/pip install --no-deps -r benchmarks/speed/peers.txt
    peers/bin/python benchmarks/speed/peers.py

The forward KL and the generalised Jensen-Shannon divergence of 512 tokens between heads of
896 x 151,936 and 1,536 x 151,936, float32, forward and backward; every token is trained. Each
library is called as its own trainer calls it: Liger's LigerFusedLinearJSDLoss, compiled, and the
function below TRL's DistillationTrainer. The values have to be equal.

Each variant runs in a process of its own, one thread, in turn, three times; medians.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import head_variants
from head_variants import VARIANTS, Given, once
from torch import Tensor
from variants import in_turn

ROUNDS = 3
BETA = {"kl": 0.0, "jsd": 0.5}  # the mixture's share of the teacher


def liger(given: Given, loss: str) -> Tensor:
    """Liger's chunked distillation, the teacher's distribution alone."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    chunked = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=BETA[loss], compiled=True
    )
    value: Tensor = chunked(
        given.states,
        given.weight,
        given.teacher_states,
        given.teacher_weight,
        given.labels,
    )
    value.backward()  # type: ignore[no-untyped-call]
    return value.detach()


def trl(given: Given, loss: str) -> Tensor:
    """TRL's, which never has a whole row of logits and makes each tile twice."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    each, _ = ChunkedDivergenceFunction.apply(
        given.states,
        given.weight,
        None,
        given.teacher_states,
        given.teacher_weight,
        None,
        BETA[loss],
    )
    value: Tensor = each.mean()
    value.backward()  # type: ignore[no-untyped-call]
    return value.detach()


PEERS: dict[str, Callable[[Given, str], Tensor]] = {"liger": liger, "trl": trl}


def tell(loss: str, tokens: int) -> None:
    ways = ("naive", "kdcore", *PEERS)
    names = [f"{way}:{loss}:{tokens}" for way in ways]
    found = in_turn(__file__, names, ROUNDS)
    print(f"\n| {loss}, {tokens} tokens | CPU seconds | of naive | GiB | of naive | loss |")
    print("|---|---|---|---|---|---|")
    naive = found[names[0]]
    for way, name in zip(ways, names, strict=True):
        one = found[name]
        seconds, memory = one["seconds"], one["memory"]
        relative = seconds / naive["seconds"], memory / naive["memory"]
        print(
            f"| {way} | {seconds:.2f} | {relative[0]:.2f} | {memory:.2f} | {relative[1]:.2f} "
            f"| {one['value']:.5f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.variant:
        variant, loss, tokens = asked.variant.split(":")
        VARIANTS.update(PEERS)
        head_variants.WARMED.update(PEERS)
        print(json.dumps(once(variant, loss, int(tokens), "float32")))
        return
    for loss in BETA:
        tell(loss, 512)


if __name__ == "__main__":
    main()
