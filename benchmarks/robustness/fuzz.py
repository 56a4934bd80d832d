"""The fuzzers of the tests, for longer: cases that the suite does not try.

    python benchmarks/robustness/fuzz.py --times 24            50,000 cases, file by file
    python benchmarks/robustness/fuzz.py --times 2 recipes     more of test_fuzz_recipes.py

A case is one example of hypothesis, drawn anew each time; it is one command or several. What fails
is shown with the smallest example that was found.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PASSED = re.compile(r"(\d+) passing, (\d+) failing")


def fuzz(file: Path, times: float) -> tuple[int, int, float]:
    """Cases that passed, cases that failed, and CPU seconds of a file of tests."""
    before = _processor_seconds()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--hypothesis-show-statistics", str(file)],
        cwd=ROOT,
        env={**os.environ, "KDCORE_FUZZ": str(times), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        errors="replace",
    )
    found = [tuple(map(int, pair)) for pair in _PASSED.findall(done.stdout)]
    if done.returncode:
        failures, _, _ = done.stdout.partition(" Hypothesis Statistics ")
        print(failures[-6000:], done.stderr[-2000:], file=sys.stderr)
    passed, failed = (sum(column) for column in zip(*found, strict=True)) if found else (0, 0)
    return passed, max(failed, int(done.returncode != 0)), _processor_seconds() - before


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Print a row for each file; 1 where something failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=float, default=22, help="as many cases as the suite has")
    parser.add_argument("only", nargs="*", help="recipes, data, tokenizers, folders")
    asked = parser.parse_args()
    files = sorted((ROOT / "tests" / "properties").glob("test_fuzz_*.py"))
    wanted = [f for f in files if not asked.only or f.stem.removeprefix("test_fuzz_") in asked.only]
    total = broken = 0
    print("| what | cases | failed | CPU seconds |\n|---|---|---|---|", flush=True)
    for file in wanted:
        passed, failed, seconds = fuzz(file, asked.times)
        total, broken = total + passed + failed, broken + failed
        name = file.stem.removeprefix("test_fuzz_")
        print(f"| {name} | {passed + failed:,} | {failed} | {seconds:.0f} |", flush=True)
    print(f"\n{total:,} cases, {broken} failed")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
