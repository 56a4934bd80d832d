"""The points of a sweep, and what is refused before the first run."""

from itertools import pairwise
from pathlib import Path

import pytest
from sweeping import SELECTION, STAGES, SWEEP, points
from typer.testing import CliRunner
from whole_runs import RECIPE

from kdcore.cli.main import app
from kdcore.errors import RecipeError, UsageError
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe
from kdcore.runs.runner import RunRequest, run_all
from kdcore.sweeps.graph import node_of, tasks_of

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def host():
    return PluginManager(off=["panel"])


def test_a_stage_that_several_points_need_is_one_task(host):
    found = points(host, STAGES + SWEEP)
    assert [each.label for each in found] == ["stage.small.seed=0", "stage.small.seed=1"]
    assert [each.seed for each in found] == [0, 1]
    big, one, two = tasks_of(found).values()
    assert (big.stage, big.needs, len(big.points)) == ("big", (), 2)
    assert one.needs == two.needs == (big.key,) and one.key != two.key


def test_nodes_say_all_that_a_scheduler_needs(host):
    text = STAGES.replace("[stage.big]", "[stage.big.resources]\ngpus = 2\nhours = 0.5")
    found = points(host, text + SWEEP, sets=("train.lr=0.5",))
    big, one, _ = (node_of(each, Path("runs"), "r.toml") for each in tasks_of(found).values())
    assert big["resources"] == {"gpus": 2, "hours": 0.5} and one["resources"] == {}
    assert one["needs"] == [big["identity"]] and one["finished"] is False
    assert one["sets"] == ["train.lr=0.5", "sweep=", "stage.small.seed=0"]
    command = one["command"]
    assert command[:5] == ["kdcore", "run", "r.toml", "--stage", "small"]
    sets = [each for word, each in pairwise(command) if word == "--set"]
    alone = read_recipe("r.toml", host, sets=sets)
    assert alone.sweep is None and alone.identity("small") == one["identity"]


def test_resources_and_the_sweep_are_no_part_of_what_a_run_is(host):
    Path("r.toml").write_text(STAGES)
    Path("s.toml").write_text(STAGES + SWEEP + "[stage.small.resources]\ngpus = 1\n")
    one, other = read_recipe("r.toml", host), read_recipe("s.toml", host)
    assert one.identity("small") == other.identity("small")
    assert other.checked["small"].resources.gpus == 1
    Path("t.toml").write_text('extends = "s.toml"\n')
    assert read_recipe("t.toml", host).sweep is None


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ('"stage.small.loss.kx.weight" = [1]', "no item named 'kx'|kx"),
        ('"train.lrr" = [1.0, 2.0]', "no option 'lrr'"),
        ('"train.lr" = ["fast"]', 'lr should be a number, not "fast"'),
        ('"stage.smal.seed" = [1]', "did you mean 'small'"),
    ],
)
def test_a_wrong_key_or_value_is_shown_where_the_sweep_says_it(host, sweep, said):
    with pytest.raises(RecipeError, match=said) as error:
        points(host, f"{STAGES}\n[sweep]\n{sweep}\n")
    assert {fault.source for fault in error.value.errors} == {sweep}


def test_two_points_that_are_one_run(host):
    text = f'{STAGES}\n[sweep]\n"stage.small.loss.kl.temperature" = [1.0, 1]\n'
    for same in ("[1.0, 1]", "[1.0, 1.0]"):
        with pytest.raises(UsageError, match="are one run"):
            points(host, text.replace("[1.0, 1]", same))
    text = f'{STAGES}\n[[sweep]]\nseed = [0]\n[[sweep]]\n"train.warmup" = [0.0]\n'
    with pytest.raises(UsageError, match=r"seed=0 and train.warmup=0.0 are one run"):
        points(host, text)


def test_a_key_that_is_set_and_varied(host):
    with pytest.raises(RecipeError, match=r"leave --set train.lr=1 out, or type --each train.lr=1"):
        points(host, RECIPE + '\n[sweep]\n"train.lr" = [1.0]\n', sets=("train.lr=1",))


@pytest.mark.parametrize("text", [STAGES, STAGES + SWEEP])
def test_a_sweep_may_be_set(host, text):
    sets = ('sweep."stage.small.seed"=[5, 6]', 'sweep.controls=["no-teacher"]')
    found = points(host, text, sets=sets)
    assert [each.seed for each in found] == [5, 5, 6, 6]
    assert all(each.recipe.sweep is None for each in found)


@pytest.mark.parametrize(
    ("control", "recipe", "said"),
    [
        ("no-teacher", RECIPE, r"has no \[teacher\], so it would change nothing"),
        ("smoothed", RECIPE, r"has no \[teacher\], so it would change nothing"),
        ("no-selection", STAGES, r"has no \[selection\], so it would change nothing"),
        ("random-selection", STAGES, r"has no \[selection\]"),
        ("more-steps", RECIPE, "neither a teacher nor a selection"),
        (
            "random-selection",
            STAGES + SELECTION.replace("hardest", "random"),
            "its selection is 'random' already",
        ),
        (
            "no-teacher",
            STAGES + SELECTION.replace('"hardest"', '"score"\nscore = {use = "kl"}'),
            "is not a recipe: 'score' needs a teacher",
        ),
    ],
)
def test_a_control_that_changes_nothing_or_cannot_be(host, control, recipe, said):
    with pytest.raises(RecipeError, match=said) as error:
        points(host, f"{recipe}\n[sweep]\nseed = [0, 1]\ncontrols = [{control!r}]\n")
    assert len(error.value.errors) == 1  # once, not for each point
    assert "controls" in error.value.errors[0].source


def test_run_counts_the_runs_and_names_the_verb(host):
    Path("r.toml").write_text(STAGES + SWEEP + 'controls = ["no-teacher"]\n')
    with pytest.raises(UsageError, match=r"a \[sweep\] of 4 runs: type kdcore sweep r.toml"):
        run_all(RunRequest("r.toml", Path("runs")), host)
    with pytest.raises(UsageError, match=r"a \[sweep\] of 12 runs"):
        run_all(RunRequest("r.toml", Path("runs"), each=("train.lr=1,2,3",)), host)
    assert not Path("runs").exists()


def test_check_finds_what_is_wrong_with_a_sweep():
    Path("r.toml").write_text(STAGES + SWEEP)
    assert CliRunner().invoke(app, ["check", "r.toml"]).exit_code == 0
    Path("r.toml").write_text(STAGES + SWEEP + 'controls = ["no-selection"]\n')
    done = CliRunner().invoke(app, ["check", "r.toml"])
    assert done.exit_code == 2 and "it would change nothing" in done.output
