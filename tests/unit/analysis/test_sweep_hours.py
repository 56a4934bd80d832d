"""The device hours of a whole sweep: each distinct run once, whatever its seed."""

from types import SimpleNamespace

import pytest
from sweeping import STAGES, points

from kdcore.analysis import sweep_hours
from kdcore.analysis.sweep_hours import hours_of_sweep
from kdcore.commands.plan import _of_sweep
from kdcore.plugin.manager import PluginManager

SECONDS = {"big": 1000.0, "small": 10.0}
GRID = '\n[sweep]\n"stage.small.seed" = [0, 1, 2]\n"stage.small.train.lr" = [1e-2, 2e-2]\n'


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """The recipes that were planned; each stage takes its SECONDS."""
    monkeypatch.chdir(tmp_path)
    asked = []

    def plans_of(recipe):
        asked.append(recipe)
        return [SimpleNamespace(stage=stage) for stage in recipe.checked.values()]

    def predicted(plan):
        seconds = SECONDS.get(plan.stage.name)
        return None if seconds is None else SimpleNamespace(seconds=seconds)

    monkeypatch.setattr(sweep_hours, "plans_of", plans_of)
    monkeypatch.setattr(sweep_hours, "predicted", predicted)
    return asked


@pytest.fixture(scope="module")
def host():
    return PluginManager(off=["panel"])


def test_a_shared_stage_counts_once_and_seeds_are_not_planned_again(host, planned):
    found = hours_of_sweep(points(host, STAGES + GRID))
    assert (found.points, found.runs, found.unknown) == (6, 7, 0)
    assert found.seconds == 1000 + 6 * 10
    assert len(planned) == 2  # one for each rate
    assert _of_sweep(found, 2.0) == (
        "7 runs of 6 points: about 17:40 (0.29 device hours, 0.59 in money), predicted"
    )


def test_controls_count_too(host, planned):
    found = hours_of_sweep(points(host, STAGES + GRID + 'controls = ["no-teacher"]\n'))
    assert (found.points, found.runs) == (12, 13)
    assert found.seconds == 1000 + 12 * 10


def test_runs_that_are_not_known_are_counted(host, planned, monkeypatch):
    monkeypatch.delitem(SECONDS, "small")
    found = hours_of_sweep(points(host, STAGES + GRID))
    assert (found.runs, found.unknown, found.seconds) == (7, 6, 1000.0)
    said = "7 runs of 6 points: at least 16:40 (0.28 device hours), predicted; 6 runs are not known"
    assert _of_sweep(found, None) == said
    monkeypatch.delitem(SECONDS, "big")
    assert _of_sweep(hours_of_sweep(points(host, STAGES + GRID)), None).endswith(": not known")
