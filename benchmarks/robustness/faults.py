"""Put one-line faults into a copy of the engine and the plugins, one by one: which test fails?

    python benchmarks/robustness/faults.py             all of them, as a table
    python benchmarks/robustness/faults.py eos kept    those whose names have one of these words

tests/mutants/planted.py declares the faults. Exit code 1 where one was not noticed, or where its
line is no longer there.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "mutants"))

import planted  # type: ignore[import-not-found]  # noqa: E402
from planted import Fault  # noqa: E402
from planted_gpu import GPU_FAULTS  # type: ignore[import-not-found]  # noqa: E402

FAULTS = [*planted.FAULTS, *GPU_FAULTS]


def noticed(fault: Fault) -> str | None:
    """The first test that fails, or None."""
    with tempfile.TemporaryDirectory(prefix="kdcore-fault-") as name:
        copy = Path(name)
        for part in ("kdcore", "plugins", "recipes"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        target = copy / fault.file
        target.write_text(fault.put_into(target.read_text()))
        tests = [str(ROOT / "tests" / each) for each in fault.tests.split()]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
            cwd=copy,
            env=os.environ
            | {"PYTHONPATH": f"{copy}:{copy / 'plugins'}", "OMP_NUM_THREADS": "1"}
            | {"PYTHONDONTWRITEBYTECODE": "1", "TOKENIZERS_PARALLELISM": "false"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode == 0:
        return None
    said = r"^(?:FAILED|ERROR) \S*?(test_\w+\.py.*?)(?: - .*)?$"
    found = re.search(said, done.stdout, re.MULTILINE)
    return found[1] if found else f"pytest ended with {done.returncode}: {done.stdout[-500:]}"


def _seconds() -> float:
    """What the processes that were started and have ended took of a core."""
    taken = resource.getrusage(resource.RUSAGE_CHILDREN)
    return taken.ru_utime + taken.ru_stime


def main(arguments: Sequence[str]) -> int:
    chosen = [
        fault for fault in FAULTS if not arguments or any(word in fault.name for word in arguments)
    ]
    missed = 0
    print("| fault | file | first test that fails | CPU seconds |\n|---|---|---|---|")
    for fault in chosen:
        began = _seconds()
        try:
            test = noticed(fault)
        except LookupError as error:
            test, missed = f"STALE: {error}", missed + 1
        missed += test is None
        seconds = _seconds() - began
        print(f"| {fault.name} | {fault.file} | {test or 'NONE'} | {seconds:.0f} |", flush=True)
    print(f"\n{len(chosen) - missed} of {len(chosen)} noticed")
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
