"""A search finds the better of two rates, resumes where it ended, and refuses what is no search."""

from pathlib import Path

import pytest
from kdcore_optuna import Searched, optuna
from typer import BadParameter

RECIPE = Path(__file__).parents[1] / "optuna.toml"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.lr=1e-4..1e-2:log", Searched("train.lr", 1e-4, 1e-2, True, ())),
        ("train.steps=4..8", Searched("train.steps", 4, 8, False, ())),
        ("loss.kl.use=kl,jsd", Searched("loss.kl.use", None, None, False, ["kl", "jsd"])),
        ("train.batch=4,8", Searched("train.batch", None, None, False, [4, 8])),
    ],
)
def test_a_range_or_values(text, expected):
    assert Searched.parse(text) == expected


@pytest.mark.parametrize("text", ["train.lr", "=1", "lr=", "lr=2..1", "lr=0..1:log", "lr=1..2:exp"])
def test_what_is_no_search_is_refused(text):
    with pytest.raises(BadParameter):
        Searched.parse(text)


def test_the_better_value_wins_and_the_same_command_resumes(tmp_path, capsys):
    def search(trials):
        optuna(str(RECIPE), ["train.lr=1e-6,1e-2"], trials=trials, out=tmp_path, seed=1)
        return len(list(tmp_path.glob("optuna-*")))

    assert search(1) == 1
    runs = search(4)
    assert runs == 2  # a run that two trials ask for runs once
    out = capsys.readouterr().out
    assert "best of 4: nll" in out and "--set train.lr=0.01" in out
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("metrics.jsonl")}
    search(4)
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("metrics.jsonl")}
