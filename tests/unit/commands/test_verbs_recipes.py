"""`kdcore recipes`: what each recipe shows and needs, without loading torch."""

import json
import subprocess
import sys

from kdcore.commands import recipes as verb
from kdcore.commands.recipes import recipes
from kdcore.recipe.files import shipped_recipes


def test_a_recipe_says_what_it_shows_and_needs(tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine.toml"
    path.write_text(
        "# Two lines that\n# make a sentence.\n# More.\n# A 24 GB card:   --set train.batch=1\n"
        "# Needs: the hub\n# Measured: kd eval/nll 0.484 +- 0.012 (n = 5)\n"
        "# Measured: eval/facts -0.03 +- 0.40 (n = 12); a b/c 1.0 +- 0.5 (n = 3)\n"
        "seed = 1\n# Needs: no\n"
    )
    monkeypatch.setattr(verb, "shipped_recipes", lambda: [path])
    monkeypatch.setattr(verb, "recipe_name", lambda path: path.stem)
    recipes(as_json=True)
    assert json.loads(capsys.readouterr().out) == [
        {
            "name": "mine",
            "shows": "Two lines that make a sentence.",
            "needs": "the hub",
            "on_24_gb": "--set train.batch=1",
            "measured": [
                {"stage": "kd", "score": "eval/nll", "mean": 0.484, "deviation": 0.012, "n": 5},
                {"stage": "", "score": "eval/facts", "mean": -0.03, "deviation": 0.4, "n": 12},
                {"stage": "a", "score": "b/c", "mean": 1.0, "deviation": 0.5, "n": 3},
            ],
            "path": str(path),
        }
    ]
    monkeypatch.setenv("COLUMNS", "160")
    recipes()
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()[:4]] == [
        "mine  Two lines that make a sentence.",
        "      Needs the hub",
        "      A 24 GB card: --set train.batch=1",
        "      Gave kd eval/nll 0.484 ± 0.012 (n = 5), eval/facts -0.03 ± 0.40 (n = 12), "
        "a b/c 1.0 ± 0.5 (n = 3)",
    ]


def test_every_shipped_recipe_says_both(capsys):
    recipes(as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert len(found) == len(shipped_recipes()) > 0
    for recipe in found:
        assert recipe["shows"].endswith((".", "!", "?")), recipe["name"]
        assert recipe["needs"], recipe["name"]
        if "GPU" in recipe["needs"]:
            said = recipe["on_24_gb"]
            assert said == "as it is" or said.startswith("--set "), recipe["name"]


def test_it_loads_no_torch():
    code = (
        "import sys; from kdcore.commands.recipes import recipes; recipes(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
