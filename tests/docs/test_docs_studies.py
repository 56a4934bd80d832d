"""docs/studies: their sweeps are read whole, and their commands typed on runs written by hand."""

import importlib.util
import io
import json
import shlex
import sys
from collections import Counter
from itertools import product
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
FIGURES = {  # by page: the name of its runs, arms that they have, and the stage that all share
    "divergences": ("figures", [("kl", 0.012, 25.0), ("kl", 0.012, 0.0)], "teacher"),
    "tinystories": ("tinyfigures", [("kl", 0.009, 1.0), ("kl", 0.001, 0.0)], "start"),
}


def commands(page):
    shell = [each for each in snippets(f"studies/{page}.md") if each.language == "sh"]
    return [line for each in shell for line in each.text.splitlines()]


@pytest.fixture(scope="module")
def studies():
    spec = importlib.util.spec_from_file_location("studies", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["studies"] = module
    spec.loader.exec_module(module)
    return module


def points(name):
    return read_points(SweepRequest(str(STUDIES / name)), PluginManager()).all


@pytest.mark.parametrize("page", FIGURES)
def test_every_divergence_is_chosen_for_and_measured_with_five_other_seeds(page):
    choosing, figures = points(f"{page}.toml"), points(f"{page}_figures.toml")
    assert len(tasks_of(choosing)) == 1 + 2 * (9 * 9 + 3)
    assert len(tasks_of(figures)) == 1 + 5 * (len(DIVERGENCES) + 1)
    key = "stage.student.loss.kl.use"
    assert [*dict.fromkeys(p.values[key] for p in choosing)] == DIVERGENCES
    assert {p.values[key] for p in figures} == {*DIVERGENCES}
    assert not {p.seed for p in choosing} & {p.seed for p in figures}
    assert len({p.seed for p in figures}) == 5
    shared = {p.recipe.identity(FIGURES[page][2]) for p in (*choosing, *figures)}
    assert len(shared) == 1


def swept(name, arms):
    """Runs of a sweep, from which `compare` takes their labels: (use, lr, weight, control), nll."""
    entries = []
    for number, ((use, lr, weight, control), nll) in enumerate(arms.items()):
        more = f"lr = {lr}\nweight = {weight}\ncontrol = '{control}'"
        folder = made(f"{name}.student", number, (3.0, nll), loss=use, more=more)
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


@pytest.mark.parametrize("page", FIGURES)
def test_the_commands(page, studies, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines, (name, arms, _) = commands(page), FIGURES[page]
    choose, shares = [each for each in lines if "studies.py" in each]
    (compared,) = [each for each in lines if each.endswith("> arms.json")]
    figures = [each for each in lines if each.startswith("kdcore compare") and each != compared]
    sweeps = [each for each in lines if each.startswith("kdcore sweep")]
    assert len(lines) == 2 + 1 + len(figures) + len(sweeps)
    for command in sweeps:
        monkeypatch.chdir(DOCS.parent)
        assert "runs" in typed(f"{command} --dry-run --out {tmp_path / 'none'}")
    monkeypatch.chdir(tmp_path)
    swept(
        page,
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
    swept(name, {(*arm, None): 0.7 + n / 10 for n, arm in enumerate([*arms, ("jsd", 0.01, 1.0)])})
    for command in figures:
        assert "on the second half of the documents" in typed(command)
    monkeypatch.setattr(
        sys, "argv", ["studies.py", "shares", *map(str, Path("runs").glob(f"{name}.*"))]
    )
    assert shares.endswith(f" shares runs/{name}.student-*")
    studies.main()
    said = capsys.readouterr().out.splitlines()
    assert sorted(each.split() for each in said)[0] == ["ce", "50.0%", "25.0%"]


SELECTIONS = ["all", "random", "rho", "hardest", "entropy", "band", "agreement", "gls"]
ATLAS = [
    line
    for each in snippets("studies/selections.md")
    if each.language == "sh"
    for line in each.text.splitlines()
]


def test_every_selection_has_every_loss_on_both_texts_with_five_seeds():
    found = points("selections.toml")
    tasks = tasks_of(found).values()
    assert len(found) == 5 * 3 * 2
    by_stage = Counter(task.stage for task in tasks)
    texts, seeds = 2, 5
    assert by_stage == {
        **dict.fromkeys(SELECTIONS, len(found)),
        "teacher": texts,
        "start": texts * seeds,
    }
    assert {*found[0].ends} == {*SELECTIONS}


def test_the_commands_of_the_selections(studies, tmp_path, monkeypatch, capsys):
    swept_with, *compared = ATLAS
    monkeypatch.chdir(DOCS.parent)
    assert "252 runs" in typed(f"{swept_with} --dry-run --out {tmp_path / 'none'}")
    monkeypatch.chdir(tmp_path)
    entries = []
    for number, (stage, share) in enumerate(product(("all", "rho"), (0.0, 0.5))):
        for seed in range(3):
            folder = made(f"selections.{stage}", seed, (3.0, 2.0), more=f"lr = {number + 1}")
            sets = {"seed": seed, "loss.kl.use": "ce", "data.share": share}
            entries.append({"sets": sets, "control": None, "stage": stage, "run": folder.name})
    Path("runs/sweep.json").write_text(json.dumps({"points": entries}))
    for command in compared:
        before, _, rest = command.partition("$(")
        inner, _, after = rest.partition(")")
        monkeypatch.setattr(sys, "argv", shlex.split(inner)[1:])
        studies.main()
        runs = capsys.readouterr().out.split()
        assert len(runs) == 6
        assert "3 paired seeds" in typed(f"{before}{' '.join(runs)}{after}")
