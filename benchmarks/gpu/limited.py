"""A command of kdcore with so many GB of the GPU's memory, as on a smaller card.

    python benchmarks/gpu/limited.py 16 run rho_qwen

What CUDA itself takes counts: torch's allocator gets the rest. Without a GPU nothing is limited.
"""

from __future__ import annotations

import sys


def limit(gigabytes: float) -> None:
    """From here on, for this process."""
    import torch

    if not torch.cuda.is_available():
        return
    torch.zeros(1, device="cuda")
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    share = (gigabytes * 1e9 - context) / total
    if not 0 < share <= 1:
        raise SystemExit(f"the card has {total / 1e9:.0f} GB: {gigabytes:g} GB are no limit for it")
    torch.cuda.set_per_process_memory_fraction(share)


def main() -> None:
    from kdcore.cli.main import main as kdcore

    gigabytes = float(sys.argv.pop(1))
    limit(gigabytes)
    kdcore()


if __name__ == "__main__":
    main()
