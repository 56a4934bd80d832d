"""What a sweep shows: lines where nobody watches, a table with the best run on a terminal."""

import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from kdcore.sweeps.coordinator import Progress
from kdcore.sweeps.table import SweepTable


def progress(folder, key, phase, reason="", nll=None):
    point = SimpleNamespace(ends=["small"], label=f"seed={key}")
    task = SimpleNamespace(key=key, name=f"r.small-{key}", stage="small", point=point)
    run = folder / key
    if nll is not None:
        run.mkdir()
        lines = [{"step": n, "tokens": n, "eval/nll": each} for n, each in enumerate(nll)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Progress(task, phase, reason, folder=run)


@pytest.fixture
def states(tmp_path):
    return [
        progress(tmp_path, "a", "done", nll=[3.0, 2.0, 2.5]),
        progress(tmp_path, "b", "running", nll=[4.0, 1.5]),
        progress(tmp_path, "c", "failed", "the loss is not finite"),
        progress(tmp_path, "d", "waiting"),
    ]


def test_a_line_for_each_change(states, capsys):
    table = SweepTable()
    table.show(states)
    assert capsys.readouterr().err.splitlines() == [
        "r.small-a  done  nll 2",
        "r.small-b  running  nll 1.5",
        "r.small-c  failed: the loss is not finite",
    ]
    table.show(states)
    assert capsys.readouterr().err == ""


def test_the_table_has_what_runs_first_and_names_the_best(states):
    table = SweepTable()
    table.show(states)
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert [line.split()[0] for line in lines[:4]] == [f"r.small-{key}" for key in "bcda"]
    assert lines[1].split(None, 2)[2] == "the loss is not finite"
    assert lines[4] == ("1 running, 1 failed, 1 waiting, 1 done, best nll so far 1.5 (seed=b)")
