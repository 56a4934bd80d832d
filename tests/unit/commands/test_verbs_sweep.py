"""`kdcore sweep`: mistakes are sentences, before the first run."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner
from whole_runs import RECIPE

from kdcore.cli.main import app
from kdcore.errors import KdcoreError

pytestmark = pytest.mark.slow

SWEEP = "\n[sweep]\nseed = [0, 1]\n"
MISTAKES = {
    "--each train.lrr=1,2": r"\[train\] has no option 'lrr'; did you mean 'lr'\?",
    "--each train.lr=a,b": 'lr should be a number, not "a"',
    "--each seed=0,0": "seed=0 and seed=0 are one run: nothing that is trained differs",
    "--each train.log_every=1,2": "are one run: nothing that is trained differs",
    "--each seed": "write K=a,b,c, such as --each seed=0,1,2",
    "--each sweep.seed=3": "sweep.seed is part of the sweep itself, which a sweep cannot vary",
    "--each sweep=": "write K=a,b,c",
    "--set seed=3": "seed is set, and the sweep varies it",
    "--set sweep.seed=3": "seed should be a list of values",
    "--set sweep=3": "sweep should be a table of lists",
    "--set 'sweep.controls=[\"nope\"]'": "there is no control 'nope'",
    "--set 'sweep.controls=[\"no-teacher\"]'": r"it has no \[teacher\], so it would change nothing",
    "--stage nope": "recipe 'r' has no stage 'nope': it has none",
    "--on moon": "no executor is named 'moon'; there are gpus, local, slurm",
    "--on local:0": "workers should be at least 1, not 0",
    "--on local:": "nothing follows the colon; leave it out for the default",
    "--on gpus:2": "'gpus' takes no argument after a colon",
    "--on slurm --slurm partitio=x": "has no option 'partitio'; did you mean 'partition'",
    "--on slurm --slurm partition": "write K=V",
    "--on local:1 --slurm partition=x": "it needs --on slurm",
    "--cancel": "no sweep of r is running in runs",
    "--cancel --on slurm": "no sweep of r is running in runs",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_a_sentence_before_the_first_run(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.toml").write_text(RECIPE + SWEEP)
    typed = ["sweep", "r.toml", "-p", "no:panel", *shlex.split(words)]
    with pytest.raises(KdcoreError, match=MISTAKES[words]):
        CliRunner().invoke(app, typed, standalone_mode=False, catch_exceptions=False)
    assert not list(tmp_path.glob("runs/*"))


def test_jobs_that_are_not_cancelled_stay_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # without SLURM
    Path("r.toml").write_text(RECIPE + SWEEP)
    jobs = Path("runs/.sweep/r/jobs.json")
    jobs.parent.mkdir(parents=True)
    jobs.write_text('{"slurm/x": "17"}')
    typed = ["sweep", "r.toml", "-p", "no:panel", "--cancel", "--on", "slurm"]
    with pytest.raises(KdcoreError, match=r"SLURM did not cancel 17: .* or scancel 17"):
        CliRunner().invoke(app, typed, standalone_mode=False, catch_exceptions=False)
    assert jobs.read_text() == '{"slurm/x": "17"}'
