"""Start-up time of the command line: `check` compared with importing torch, and what needs none.

    python benchmarks/speed/start.py

The targets: `kdcore check` of a recipe takes 1.3 times `python -c "import torch"`, and `kdcore`,
`--help`, `recipes` and `new` take half a second each and import no torch. Each command runs in turn
with the others, three times; medians of CPU seconds, which other work on the machine moves less,
and of wall seconds.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROUNDS = 3
BEGIN = "import sys; from kdcore.cli.main import main; sys.argv = ['kdcore', *sys.argv[1:]]; "


def commands(folder: Path) -> dict[str, list[str]]:
    def kdcore(*arguments: str) -> list[str]:
        return [sys.executable, "-c", f"{BEGIN}main()", *arguments]

    return {
        "import torch": [sys.executable, "-c", "import torch"],
        "kdcore check quickstart": kdcore("check", "quickstart"),
        "kdcore check rho_qwen": kdcore("check", "rho_qwen"),
        "kdcore": kdcore(),
        "kdcore --help": kdcore("--help"),
        "kdcore recipes": kdcore("recipes"),
        "kdcore new recipe": kdcore("new", "recipe", "quickstart", str(folder / "own.toml")),
    }


def measured(command: Sequence[str], folder: Path) -> tuple[float, float]:
    """CPU and wall seconds."""
    (folder / "own.toml").unlink(missing_ok=True)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, wall


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PYTHONPYCACHEPREFIX"] = name  # compiled once, as in an installed package
        asked = commands(folder)
        for command in asked.values():
            measured(command, folder)
        found: dict[str, list[tuple[float, float]]] = {said: [] for said in asked}
        for _ in range(ROUNDS):
            for said, command in asked.items():
                found[said].append(measured(command, folder))
    print("| command | CPU seconds | wall seconds | of import torch, CPU |\n|---|---|---|---|")
    medians = {
        said: [statistics.median(each[n] for each in some) for n in (0, 1)]
        for said, some in found.items()
    }
    torch = medians["import torch"][0]
    for said, (used, wall) in medians.items():
        print(f"| `{said}` | {used:.2f} | {wall:.2f} | {used / torch:.2f} |")
    print(f"\ncheck, of import torch: {medians['kdcore check rho_qwen'][0] / torch:.2f}")


if __name__ == "__main__":
    main()
