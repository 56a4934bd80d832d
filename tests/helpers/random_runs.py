"""A case drawn at random, run as a user runs a recipe; and what is compared with the oracle's."""

import json
import shutil
from pathlib import Path

import random_world as world
import tomli_w
import torch
from random_oracle import MismatchError, TooClose, judged, same
from safetensors.torch import load_file

EXACT = 1e-5
ROUNDED = 1e-3  # where a number may have been rounded to the other side: a cached one, a slope
VERDICTS = ("equal", "too close")
WHAT = ("weights", "metrics")
TIMES = ("time", "elapsed", "cpu_seconds", "tokens_per_second")


def make_host():
    from kdcore.plugin.manager import PluginManager

    return PluginManager(off=["panel", "comparison"], files=[world.PLUGIN])


# The engine


def run(case, host, barrier=lambda: None, *, main=True, continued=True):
    """The folder of the run, and of one that went on from a checkpoint of it, if one should."""
    from kdcore.runs.runner import RunRequest, run_all

    recipe = Path(f"random-{case.seed}.toml")
    if main:
        recipe.write_text(tomli_w.dumps(case.recipe))
    barrier()
    out = Path("runs") / str(case.seed)
    (folder,) = run_all(RunRequest(str(recipe), out), host)
    if not continued:
        return folder, None
    again = out / "again"
    barrier()
    if main:
        shutil.copytree(folder, again)
        _cut_back(again, case)
    barrier()
    run_all(RunRequest(str(again), out), host)
    barrier()
    return folder, again


def _cut_back(folder, case):
    """A run as it was when it was stopped after the step to go on from."""
    shutil.rmtree(folder / "final")
    for checkpoint in (folder / "checkpoints").glob("step-*"):
        if int(checkpoint.name[5:]) > case.resume:
            shutil.rmtree(checkpoint)
    if case.again:
        shutil.rmtree(folder.parent / "caches", ignore_errors=True)


# The comparison


def verdict(case, folder, again):
    """ "equal", or "too close" where it hangs on rounding; else an error that tells."""
    found = {_by_oracle(case, folder), "equal" if again is None else _resumed(case, folder, again)}
    return "too close" if "too close" in found else "equal"


def _by_oracle(case, folder):
    try:
        return _compared(case, folder)
    except TooClose:
        return "too close"


def _compared(case, folder):
    found, (results, weights) = _found(folder), judged(case, folder)
    expected = _expected(results, weights)
    try:
        _compare(found, expected, EXACT)
    except MismatchError:
        if results.at_border:
            _compare(found, expected, ROUNDED)
        else:  # float32 may be as far from float64 when nothing is chunked
            rounded = _expected(*judged(case, folder, torch.float32))
            _compare(found, expected, EXACT, rounded)
        return "too close"
    return "equal"


def _found(folder):
    """What a run left, by name."""
    lines = _lines(folder)
    found = {}
    for line in lines:
        if "loss" in line:
            names = [key for key in line if key.startswith("loss/")]
            weight = {name: line[name.replace("loss", "weight", 1)] for name in names}
            found |= {f"step {line['step']}: {n}": line[n] * weight.get(n, 1) for n in names}
            found[f"step {line['step']}: kept"] = line["kept"]
    final = world.loaded(folder / "final").state_dict()
    return found | {"eval/nll": lines[-1]["eval/nll"]} | final


def _expected(results, weights):
    expected = {}
    for step, (terms, kept) in enumerate(zip(results.terms, results.kept, strict=True), 1):
        expected |= {f"step {step}: loss/{label}": value for label, value in terms.items()}
        expected[f"step {step}: kept"] = kept
    return expected | {"eval/nll": results.nll} | weights


def _compare(found, expected, tolerance, rounded=None):
    """Whether all is as near as it should be, or as near as what float32 gives without chunks."""
    for name in sorted(found.keys() | expected.keys()):
        one, other, third = (_number(of, name) for of in (found, expected, rounded or expected))
        allowed = tolerance * (1 if other.ndim else 1 + other.abs())
        apart = (one - other).abs().max()
        if not apart <= allowed + (third - other).abs().max():
            raise MismatchError(f"{name}: {apart:.3g} apart of {other.abs().max():.3g}")


def _number(numbers, name):
    """As float64. A term that weighs nothing in a step is not told of."""
    number = numbers.get(name, 0.0) if "loss/" in name else numbers[name]
    return torch.as_tensor(number, dtype=torch.float64)


def _resumed(case, folder, again):
    one, other = (path / "final" / "model.safetensors" for path in (folder, again))
    same_weights = one.read_bytes() == other.read_bytes()
    if same_weights and _lines(folder) == _lines(again):
        return "equal"
    if not (case.again and _is_cached(case.recipe)):
        raise MismatchError(f"the continued run has other {WHAT[same_weights]}")
    # A cache that is gone is filled again out of other batches, and rounded to half precision.
    expected = load_file(one)
    for name, weight in load_file(other).items():
        same(f"the continued run's {name}", weight, expected[name], ROUNDED)
    return "too close"


def _is_cached(recipe):
    asked = (recipe.get("teacher"), recipe.get("selection", {}).get("reference"))
    return any(teacher is not None and teacher["use"] == "cached" for teacher in asked)


def _lines(folder):
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in read]
