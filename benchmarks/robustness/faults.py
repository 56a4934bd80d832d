"""Put one-line faults into a copy of the engine and the plugins, one by one: which test fails?

    python benchmarks/robustness/faults.py             all of them, as a table
    python benchmarks/robustness/faults.py eos kept    those whose names have one of these words

tests/mutants/planted.py and planted_gpu.py declare the faults. Each is a fork of a process that has
imported the libraries, some on the fake CUDA device. Exit code 1 where one was not noticed, or
where its line is no longer there.
"""

from __future__ import annotations

import importlib
import os
import re
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "mutants"), str(ROOT / "tests")]

from fake_cuda.device import install  # type: ignore[import-not-found]  # noqa: E402
from fake_cuda.library import compiler, library  # type: ignore[import-not-found]  # noqa: E402
from planted import FAULTS, Fault  # type: ignore[import-not-found]  # noqa: E402
from planted_gpu import GPU_FAULTS  # type: ignore[import-not-found]  # noqa: E402

LIBRARIES = (
    *("torch", "torch.distributed.tensor", "accelerate", "datasets", "peft", "pytest"),
    *("hypothesis", "transformers.models.llama.modeling_llama", "transformers.trainer_utils"),
)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")


def noticed(fault: Fault) -> str | None:
    """The first test that fails, or None."""
    with tempfile.TemporaryDirectory(prefix="kdcore-fault-") as name:
        copy = Path(name)
        for part in ("kdcore", "plugins", "recipes"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        target = copy / fault.file
        target.write_text(fault.put_into(target.read_text()))
        code = _forked(partial(_test, fault, copy))
        printed = (copy / "printed.txt").read_text()
    if code == 0:
        return None
    said = r"^(?:FAILED|ERROR) \S*?(test_\w+\.py.*?)(?: - .*)?$"
    found = re.search(said, printed, re.MULTILINE)
    return found[1] if found else f"pytest ended with {code}: {printed[-500:]}"


def _forked(work: Callable[[], int]) -> int:
    """The exit code of a fork that ends with what `work` returns."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _end_with(work)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _end_with(work: Callable[[], int]) -> NoReturn:
    code = 1
    try:
        code = work()
        sys.stdout.flush()
    finally:
        os._exit(code)


def _test(fault: Fault, copy: Path) -> int:
    """Test the engine and the plugins of this copy; pytest's exit code."""
    import pytest

    output = os.open(copy / "printed.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(copy)
    places = [str(copy), str(copy / "plugins")]
    sys.path[:0] = places
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": os.pathsep.join(places), "PYTHONDONTWRITEBYTECODE": "1"}
    tests = [str(ROOT / "tests" / each) for each in fault.tests.split()]
    return int(pytest.main([*OPTIONS, *tests]))


def _seconds() -> float:
    """What the processes that were started and have ended took of a core."""
    taken = resource.getrusage(resource.RUSAGE_CHILDREN)
    return taken.ru_utime + taken.ru_stime


def _all(faults: Sequence[Fault], *, device: bool) -> int:
    """A line of the table for each; 1 if one was not noticed."""
    if device:
        install(library())
    for name in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
    missed = 0
    for fault in faults:
        began = _seconds()
        try:
            test = noticed(fault)
        except LookupError as error:
            test, missed = f"STALE: {error}", missed + 1
        missed += test is None
        seconds = _seconds() - began
        print(f"| {fault.name} | {fault.file} | {test or 'NONE'} | {seconds:.0f} |", flush=True)
    return int(missed > 0)


def main(arguments: Sequence[str]) -> int:
    chosen = [
        fault
        for fault in (*FAULTS, *GPU_FAULTS)
        if not arguments or any(word in fault.name for word in arguments)
    ]
    os.environ |= ENVIRONMENT
    print("| fault | file | first test that fails | CPU seconds |\n|---|---|---|---|")
    codes = []
    for device in (False, True):
        some = [fault for fault in chosen if fault.device == device]
        if device and some and compiler() is None:
            print(f"\n{len(some)} need a C++ compiler, and there is none")
        elif some:
            codes.append(_forked(partial(_all, some, device=device)))
    return int(any(codes))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
