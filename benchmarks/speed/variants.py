"""Variants side by side: each in a process of its own, in turn, some rounds; medians."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence


def in_turn(script: str, variants: Sequence[str], rounds: int) -> dict[str, dict[str, float]]:
    """What `script --variant NAME` prints last, a line of JSON; the median of each number.

    The variants take turns, so that whatever else the machine does meets all of them.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["THP_MEM_ALLOC_ENABLE"] = "1"  # as the command `kdcore` sets it
    found: dict[str, list[Mapping[str, float]]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name in variants:
            command = [sys.executable, script, "--variant", name]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            found[name].append(json.loads(done.stdout.decode().splitlines()[-1]))
    return {
        name: {key: statistics.median(each[key] for each in some) for key in some[0]}
        for name, some in found.items()
    }
