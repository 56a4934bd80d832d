"""What processes agree on before they run a sharded model together."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def largest(count: int) -> int:
    """The largest count of all processes. Never waits for a GPU."""
    found = torch.tensor(count)
    group = _on_host(torch.distributed.group.WORLD)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=group)
    return int(found)


@cache
def _on_host(world: ProcessGroup) -> ProcessGroup:
    """All processes, connected by gloo. Made at the first use, by all of them together."""
    if torch.distributed.get_backend(world) == "gloo":
        return world
    made: ProcessGroup = torch.distributed.new_group(backend="gloo")
    return made
