"""docs/studies: their sweeps are read whole, and their commands typed on runs written by hand."""

import importlib.util
import io
import json
import shlex
import sys
from pathlib import Path

import pytest
import tomli
from documents import DOCS, snippets
from made_runs import made
from typer.testing import CliRunner

from kdcore.cli.main import app
from kdcore.plugin.manager import PluginManager
from kdcore.sweeps.graph import tasks_of
from kdcore.sweeps.points import SweepRequest, read_points

STUDIES = DOCS / "studies"
SCRIPT = DOCS.parent / "benchmarks" / "learning" / "studies.py"
DIVERGENCES = ["kl", "reverse-kl", "skew-kl", "skew-reverse-kl", "jsd", "tvd"]
DIVERGENCES += ["symmetric-kl", "adaptive-kl", "alpha-beta"]
FIGURES = {
    ("kl", 0.012, 25.0, None): 0.66,
    ("kl", 0.012, 0.0, None): 0.77,
    ("jsd", 0.012, 1.0, None): 0.73,
}
COMMANDS = [
    line
    for each in snippets("studies/divergences.md")
    if each.language == "sh"
    for line in each.text.splitlines()
]


@pytest.fixture(scope="module")
def studies():
    spec = importlib.util.spec_from_file_location("studies", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["studies"] = module
    spec.loader.exec_module(module)
    return module


def points(name):
    return read_points(SweepRequest(str(STUDIES / name)), PluginManager()).all


def test_every_divergence_is_chosen_for_and_measured_with_five_other_seeds():
    choosing, figures = points("divergences.toml"), points("divergences_figures.toml")
    assert len(tasks_of(choosing)) == 1 + 4 * 9 + 5 * 6 + 3
    assert len(tasks_of(figures)) == 1 + 5 * (len(DIVERGENCES) + 1)
    key = "stage.student.loss.kl.use"
    assert [*dict.fromkeys(p.values[key] for p in choosing)] == DIVERGENCES
    assert {p.values[key] for p in figures} == {*DIVERGENCES}
    assert not {p.seed for p in choosing} & {p.seed for p in figures}
    assert len({p.seed for p in figures}) == 5
    teachers = {p.recipe.identity("teacher") for p in (*choosing, *figures)}
    assert len(teachers) == 1


def swept(name, arms):
    """Runs of a sweep, from which `compare` takes their labels: (use, lr, weight, control), nll."""
    entries = []
    for number, ((use, lr, weight, control), nll) in enumerate(arms.items()):
        folder = made(f"{name}.student", number, (3.0, nll), loss=use, more=f"lr = {lr}")
        sets = {"stage.student.loss.kl.use": use, "stage.student.train.lr": lr}
        sets["stage.student.loss.kl.weight"] = weight
        entries.append({"sets": sets, "control": control, "stage": "student", "run": folder.name})
        resolved = (folder / "resolved.toml").read_text()
        (folder / "resolved.toml").write_text(resolved.replace(f"seed = {number}", "seed = 0"))
        lines = [json.loads(each) for each in (folder / "metrics.jsonl").read_text().splitlines()]
        for line, share in zip(lines, (0.5, 0.25), strict=True):
            line |= {"gradient/ce": 1 - share, f"gradient/{use}": share, f"weight/{use}": weight}
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("runs/sweep.json").write_text(json.dumps({"points": entries}))


def typed(command):
    done = CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_commands(studies, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    choose, shares = [each for each in COMMANDS if "studies.py" in each]
    (compared,) = [each for each in COMMANDS if each.endswith("> arms.json")]
    figures = [each for each in COMMANDS if each.startswith("kdcore compare") and each != compared]
    sweeps = [each for each in COMMANDS if each.startswith("kdcore sweep")]
    assert len(COMMANDS) == 2 + 1 + len(figures) + len(sweeps)
    for command in sweeps:
        monkeypatch.chdir(DOCS.parent)
        assert "runs" in typed(f"{command} --dry-run --out {tmp_path / 'none'}")
    monkeypatch.chdir(tmp_path)
    swept(
        "divergences",
        {
            ("kl", 0.01, 1.0, None): 0.9,
            ("kl", 0.02, 5.0, None): 0.7,
            ("jsd", 0.01, 1.0, None): 0.6,
            ("jsd", 0.02, 1.0, None): 0.8,
            ("kl", 0.01, 1.0, "no-teacher"): 1.2,
            ("kl", 0.02, 1.0, "no-teacher"): 1.3,
        },
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed(compared.partition(" > ")[0])))
    monkeypatch.setattr(sys, "argv", shlex.split(choose.partition(" < ")[0])[1:])
    studies.main()
    written = tomli.loads(capsys.readouterr().out)["sweep"]
    key = "stage.student.loss.kl."
    assert [(each[f"{key}use"], each[f"{key}weight"]) for each in written] == [
        (["kl"], [5.0]),
        (["jsd"], [1.0]),
        (["kl"], [0.0]),  # cross-entropy alone
    ]
    assert [each["stage.student.train.lr"] for each in written] == [[0.02], [0.01], [0.01]]
    swept("figures", FIGURES)
    for command in figures:
        assert "on the second half of the documents" in typed(command)
    monkeypatch.setattr(sys, "argv", ["studies.py", "shares", *map(str, Path("runs").glob("fig*"))])
    assert shares.endswith(" shares runs/figures.student-*")
    studies.main()
    said = capsys.readouterr().out.splitlines()
    assert sorted(each.split() for each in said)[0] == ["ce", "50.0%", "25.0%"]
