"""The benchmark of the twins: it compares what it should, with runs that are stubs."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "learning" / "twins.py"


@pytest.fixture(scope="module")
def twins():
    spec = importlib.util.spec_from_file_location("twins", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["twins"] = module
    spec.loader.exec_module(module)
    return module


EXPECTED = """
[[figure]]
recipe = "cpu/mine"
key = "eval/nll"
stage = "kd"
expected = 0.5
tolerance = 0.1
[[figure]]
recipe = "cpu/mine"
key = "eval/nll"
stage = "kd"
less = "ce"
at = "best"
expected = -0.3
tolerance = 0.05
"""


@pytest.fixture
def stubbed(twins, tmp_path, monkeypatch):
    """Runs of two stages that end with given losses, by seed."""
    path = tmp_path / "expected.toml"
    path.write_text(EXPECTED)
    monkeypatch.setattr(twins, "EXPECTED", path)
    asked = []

    def stub(*, kd, ce=0.8):
        def run(recipe, seed, out):
            asked.append((recipe, seed))
            for stage, last in (("kd", kd[seed]), ("ce", ce)):
                folder = out / f"mine.{stage}-12345678"
                folder.mkdir(parents=True)
                lines = [{"loss": 3.0}, {"eval/nll": 9.0}, {"eval/nll": last}]
                (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))

        monkeypatch.setattr(twins, "run", run)
        return asked

    return stub


def test_figures_within_their_tolerance_are_ok(twins, stubbed, tmp_path, capsys):
    asked = stubbed(kd=[0.48, 0.5, 0.52])
    assert twins.main(["cpu/mine", "--out", str(tmp_path / "runs")]) == 0
    assert asked == [("cpu/mine", seed) for seed in (0, 1, 2)]
    _, first, second = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    first, second = ([text for text in line if text.strip()] for line in (first, second))
    assert [text.strip() for text in first] == [
        "cpu/mine",
        "kd eval/nll",
        "0.480 0.500 0.520",
        "0.500",
        "0.500 +- 0.100",
        "ok",
    ]
    assert second[1].strip() == "kd lowest eval/nll, less ce's" and second[-1].strip() == "ok"


def test_the_mean_over_the_seeds_decides(twins, stubbed, tmp_path, capsys):
    stubbed(kd=[0.4, 0.5, 0.64])  # 0.64 alone would be outside
    assert twins.main(["cpu/mine", "--out", str(tmp_path / "runs")]) == 0


@pytest.mark.parametrize("kd", [[0.39], [0.61], [float("nan")]])
def test_a_figure_outside_is_reported(twins, stubbed, tmp_path, capsys, kd):
    stubbed(kd=kd, ce=kd[0] + 0.3)
    assert twins.main(["cpu/mine", "--seeds", "0", "--out", str(tmp_path / "runs")]) == 1
    assert "OUTSIDE" in capsys.readouterr().out


def test_a_recipe_without_figures_is_reported(twins, stubbed, tmp_path, capsys):
    stubbed(kd=[0.5])
    assert twins.main(["cpu/other", "--out", str(tmp_path / "runs")]) == 1
    assert "MISSING" in capsys.readouterr().out


@pytest.mark.slow
def test_every_twin_has_figures_of_stages_that_it_has(twins):
    figures = twins.figures()
    host = PluginManager()
    stages = {
        recipe: {stage.name for stage in read_recipe(recipe, host).stages}
        for recipe in {figure.recipe for figure in figures}
    }
    assert stages.keys() == {*twins.twins()}
    for figure in figures:
        assert {figure.stage, figure.less or figure.stage} <= stages[figure.recipe], figure
        assert figure.at in ("last", "best") and figure.tolerance > 0


def test_heads_of_recipes_say_what_is_expected(twins):
    from kdcore.commands.recipes import _described
    from kdcore.recipe.files import shipped_recipes

    heads = [_described(path) for path in shipped_recipes()]
    values = {
        (head["name"], each["stage"], each["score"]): each
        for head in heads
        for each in head["measured"]
    }
    assert len(values) >= 12
    for path in shipped_recipes():
        lines = [line for line in path.read_text().splitlines() if line.startswith("# Measured:")]
        count = sum(line.count("(n = ") for line in lines)
        (head,) = [each for each in heads if each["path"] == str(path)]
        assert len(head["measured"]) == count
    shared = [f for f in twins.figures() if (f.recipe, f.stage, f.key) in values and not f.less]
    assert len(shared) >= 4
    for figure in shared:
        each = values[figure.recipe, figure.stage, figure.key]
        assert abs(each["mean"] - figure.expected) <= 0.002
        assert each["deviation"] < figure.tolerance and each["n"] >= 3
