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
ROUNDED = 1e-3  # where the engine may have kept one of a teacher's numbers as its neighbour
VERDICTS = ("equal", "too close")
WHAT = ("weights", "metrics")
TIMES = ("time", "elapsed", "tokens_per_second")


def make_host():
    from kdcore.plugins import Host

    return Host(off=["panel", "comparison"], files=[world.PLUGIN])


# The engine


def run(case, host, barrier=lambda: None, *, main=True, continued=True):
    """The folder of the run, and of one that went on from a checkpoint of it, if one should."""
    from kdcore.running import Asked, run_all

    recipe = Path(f"random-{case.seed}.toml")
    if main:
        recipe.write_text(tomli_w.dumps(case.recipe))
    barrier()
    out = Path("runs") / str(case.seed)
    (folder,) = run_all(Asked(str(recipe), out), host)
    if not continued:
        return folder, None
    again = out / "again"
    barrier()
    if main:
        shutil.copytree(folder, again)
        _cut_back(again, case)
    barrier()
    run_all(Asked(str(again), out), host)
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
        told, weights = judged(case, folder)
    except TooClose:
        return "too close"
    try:
        _compare(folder, told, weights, EXACT)
    except MismatchError:
        if told.at_border:
            _compare(folder, told, weights, ROUNDED)
        else:  # float32 may be as far from float64 when nothing is chunked
            _compare(folder, *judged(case, folder, torch.float32), EXACT)
        return "too close"
    return "equal"


def _compare(folder, told, weights, tolerance):
    lines = _lines(folder)
    steps = [line for line in lines if "loss" in line]
    if len(steps) != len(told.terms):
        raise MismatchError(f"{len(steps)} steps, and {len(told.terms)} by the oracle")
    for line, terms, kept in zip(steps, told.terms, told.kept, strict=True):
        said = f"step {line['step']}: "
        found = {key[5:]: value for key, value in line.items() if key.startswith("loss/")}
        for label in found.keys() | terms.keys():
            _near(f"{said}loss/{label}", found.get(label, 0.0), terms.get(label, 0.0), tolerance)
        _near(f"{said}kept", line["kept"], kept, tolerance)
    _near("eval/nll", lines[-1]["eval/nll"], told.nll, tolerance)
    for name, weight in world.loaded(folder / "final").state_dict().items():
        same(name, weight.double(), weights[name], tolerance)


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


def _near(what, found, expected, tolerance):
    if not abs(found - expected) <= tolerance * (1 + abs(expected)):
        raise MismatchError(f"{what}: {found!r}, and {expected!r} by the oracle")
