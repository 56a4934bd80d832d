"""`make gpu`: what it does with parts that go wrong, what it reports, all of it with tiny shapes.

No GPU is needed: its parts are replaced here, or rehearsed.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GPU = ROOT / "benchmarks" / "gpu"
MODULES = ("day", "parts", "report", "world", "process", "roofline", "trials", "founding")
MODULES += ("standins", "engine", "limited", "head_table", "bare", "recipe_shapes")


@pytest.fixture
def day(monkeypatch):
    """The command as a module; its modules go away again."""
    monkeypatch.syspath_prepend(str(GPU))
    before = [*sys.path]
    import day

    yield day
    sys.path[:] = before
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def world(day, tmp_path):
    made = day.World(tmp_path, True)
    made.results.mkdir()
    return made


@pytest.fixture
def put(day, monkeypatch):
    """Replaces the parts."""

    def put(**measures):
        found = [
            day.Part(name, 0.3 if measure is endless else 60, measure)
            for name, measure in measures.items()
        ]
        monkeypatch.setattr(day, "parts", lambda **_: found)

    return put


def good(world):
    return {"ms": 1.0, "targets": []}


def bad(world):
    raise ValueError("it went wrong")


def endless(world):
    while True:
        pass


def gone(world):
    os._exit(9)


def later():
    return time.monotonic() + 1000


def results(world):
    return {path.stem: json.loads(path.read_text()) for path in world.results.glob("*.json")}


def test_the_next_part_starts_whatever_a_part_does(day, world, put):
    def absent(world):
        raise day.Skipped("no such library")

    put(bad=bad, endless=endless, gone=gone, absent=absent, good=good)
    assert day.go(world, later(), again=False)
    found = results(world)
    said = {name: one["status"] for name, one in found.items()}
    failed = dict.fromkeys(("bad", "endless", "gone"), "failed")
    assert said == {**failed, "absent": "skipped", "good": "done"}
    assert found["bad"]["error"].rstrip().endswith("ValueError: it went wrong")
    assert found["endless"]["error"] == "it took more than 0 s"
    assert found["gone"]["error"].endswith("it ended with 9")
    assert found["good"]["result"]["ms"] == 1.0
    assert not [*world.results.glob("*.partial")]


def test_a_second_call_does_what_is_missing(day, world, put, capsys):
    put(first=good, second=bad)
    day.go(world, later(), again=False)
    put(first=bad, second=good, third=good)
    capsys.readouterr()
    day.go(world, later(), again=False)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["third"]
    day.go(world, later(), again=True)
    said = {name: one["status"] for name, one in results(world).items()}
    assert said == {"first": "done", "second": "done", "third": "done"}


def test_a_part_that_the_day_has_no_time_for_is_left_for_the_next_call(
    day, world, put, monkeypatch
):
    monkeypatch.setattr(day, "LAST", 0.1)
    put(good=good, endless=endless)
    day.go(world, later(), again=False)
    (world.results / "endless.json").unlink()
    put(good=good, later=lambda world: endless(world))
    assert not day.go(world, time.monotonic() + 0.2, again=False)
    assert {*results(world)} == {"good"}
    assert not day.go(world, time.monotonic(), again=False)


def lives(pid):
    """Whether a process runs that was not ended."""
    try:
        return Path("/proc", pid, "stat").read_text().split()[2] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_a_part_started_ends_with_it(day, tmp_path):
    from process import forked, started

    pid = tmp_path / "pid"
    child = f"import os; open({str(pid)!r}, 'w').write(str(os.getpid()))\nwhile True: pass"
    begin = f"subprocess.Popen([sys.executable, '-c', {child!r}])"
    wait = (
        f"import os\nwhile not (os.path.exists({str(pid)!r}) and open({str(pid)!r}).read()): pass"
    )
    script = f"import subprocess, sys\n{begin}\n{wait}"
    for run in (
        lambda: started(["-c", script], os.environ, tmp_path / "log", 60),
        lambda: forked(lambda: exec(script, {}), tmp_path / "log", 60),
    ):
        pid.unlink(missing_ok=True)
        assert run() == 0
        until = time.monotonic() + 60
        while lives(pid.read_text()):
            assert time.monotonic() < until


def test_exit_codes_are_reported(day, tmp_path):
    from process import forked, started

    log = tmp_path / "log"
    assert started(["-c", "print(3); raise SystemExit(4)"], os.environ, log, 60) == 4
    assert log.read_text() == "3\n"
    assert forked(lambda: sys.exit(4), log, 60) == 4
    assert forked(lambda: None, log, 60) == 0
    assert forked(lambda: os.kill(os.getpid(), 9), log, 60) == -9


TARGETS = [
    ({"measured": 3.0, "least": None, "most": 4.0}, True),
    ({"measured": 5.0, "least": None, "most": 4.0}, False),
    ({"measured": 3.0, "least": 3.5, "most": 4.0}, False),
    ({"measured": None, "least": None, "most": 4.0}, False),
    ({"measured": float("nan"), "least": None, "most": 4.0}, False),
]


@pytest.mark.parametrize("target, met", TARGETS)
def test_what_is_below_its_target_is_reported(day, target, met):
    import report

    judged = {"what": "milliseconds", "judged": True, **target}
    found = {"head": {"status": "done", "result": {"targets": [judged]}}}
    assert (report.below(found) == []) == met
    rehearsed = {"head": {"status": "done", "result": {"targets": [{**judged, "judged": False}]}}}
    assert report.below(rehearsed) == []


def test_the_file_says_what_there_is_and_what_is_missing(day, world, put):
    card = {"card": "NVIDIA H100 80GB HBM3", "versions": {"torch": "2.13.0"}}
    row = {"rows at once": 4, "ms": 12.5, "tokens/s": 40960.0, "MFU": 0.07}
    row |= {"memory": {"taken": 11.0}, "planned": {"peak": 10.0}, "kernels": 3750, "busy_ms": 11.0}
    judged = {"what": "memory of plan", "measured": 1.2, "least": 0.9, "most": 1.1, "judged": True}
    row |= {"longest": {"gemm": 4.0}, "targets": [judged]}
    put(**{"machine": lambda w: card, "rho_qwen, kdcore": lambda w: row, "bad": bad})
    day.go(world, later(), again=False)
    put(**{"machine": good, "rho_qwen, kdcore": good, "bad": bad, "tests": good})
    path = day.write(world, world.folder / "out")
    assert path.name.endswith("-gpu-nvidia-h100-80gb-hbm3.md")
    text = path.read_text()
    for said in (
        "| rho_qwen | kdcore | 4 | 12.50 | 40,960 | 7.0% | 11.00 | 10.00 | 1.10 |",
        "| rho_qwen | 3,750 | 11.00 | `gemm` 4.00 |",
        "- rho_qwen, kdcore: memory of plan: 1.2 (at least 0.9, at most 1.1)",
        "- bad failed: ValueError: it went wrong",
        "- tests: not reached",
        "| versions, torch | 2.13.0 |",
    ):
        assert said in text


def test_parts_are_those_of_the_trials(day):
    import founding
    import parts
    import trials

    assert (*trials.OPTIONS,) == parts.OPTIONS
    assert (*trials.CARDS,) == parts.CARDS
    assert (*trials.DECISIONS,) == parts.DECISIONS
    assert {*parts.FIRST} == {*founding.NAMES}
    names = [part.name for part in parts.parts()]
    assert len({*names}) == len(names) and names[:3] == ["machine", "tests", "head"]


@pytest.mark.slow
def test_without_a_gpu_it_says_so(tmp_path):
    command = [sys.executable, GPU / "day.py", "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    import torch

    if not torch.cuda.is_available():
        assert done.returncode == 1
        assert done.stderr == (
            "torch sees no GPU here; --rehearse shows that everything runs on a CPU\n"
        )


@pytest.mark.slow
def test_a_card_that_is_not_here_is_planned_for():
    command = [sys.executable, GPU / "planned.py", "24", "rho_qwen", "--rehearse"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Predicted for a card of 24 GB, not measured.")
    cells = done.stdout.splitlines()[-1].split(" | ")
    assert cells[0] == "| rho_qwen" and cells[1] == "4 of 4" and cells[-1] == "yes |"


@pytest.mark.slow
def test_all_of_it_with_tiny_shapes(tmp_path):
    command = [
        sys.executable,
        GPU / "day.py",
        "--rehearse",
        "--folder",
        tmp_path,
        "--minutes",
        "60",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "results").glob("*.json")}
    failed = {name: one["error"] for name, one in found.items() if one["status"] == "failed"}
    assert not failed
    measured = [one for name, one in found.items() if name.endswith(("-kdcore", "-bare"))]
    assert len(measured) == 14 and all(one["result"]["ms"] > 0 for one in measured)
    assert found["kill-and-resume"]["result"]["to the bit"]
    few, many = found["out-of-memory"]["result"]["losses"]
    assert few == pytest.approx(many, rel=1e-3)
    assert "nothing is below its target" in done.stdout
    (path,) = tmp_path.glob("*.md")
    assert "no figure here means anything" in path.read_text()
