"""The numbers that the recipes for a CPU give in their first steps, as they stand in golden.json.

They change where what a recipe computes changes. Then, and only then:

    python tests/golden.py                 write those of all recipes anew
    python tests/golden.py quickstart      of one

and say in the commit why. Other processors round otherwise; the test leaves room for that.
"""

import json
import sys
import tempfile
from pathlib import Path

from kdcore.recipe.files import recipe_name, shipped_recipes

FILE = Path(__file__).resolve().parents[1] / "end_to_end" / "golden.json"
STEPS = 3
KEYS = ("loss", "kept", "eval/nll")


def recipes():
    """Those that need no hub."""
    names = map(recipe_name, shipped_recipes())
    return [name for name in names if name.startswith(("cpu/", "quickstart"))]


def sets_for(recipe):
    """A few steps of each stage, every one told, and few rows measured."""
    given = {"steps": STEPS, "eval_rows": 4, "log_every": 1, "eval_first": "false"}
    tables = [f"stage.{stage.name}.train" if stage.name else "train" for stage in recipe.stages]
    return [f"{table}.{key}={value}" for table in tables for key, value in given.items()]


def run(name, out):
    """Run a recipe shortened; the folder of each stage, by the stage's name."""
    from kdcore.plugin.manager import PluginManager
    from kdcore.recipe.recipe import read_recipe
    from kdcore.runs.runner import RunRequest, run_all

    host = PluginManager(off=["panel", "comparison"])
    recipe = read_recipe(name, host)
    sets = (*sets_for(recipe), "seed=0")
    folders = run_all(RunRequest(name, out, sets=sets), host)
    return dict(zip([stage.name for stage in recipe.stages], folders, strict=True))


def numbers(folder):
    """What a run logged, by key: a list of each."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    keys = {key for line in lines for key in line if key in KEYS or key.startswith("loss/")}
    return {key: [line[key] for line in lines if key in line] for key in sorted(keys)}


def golden():
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def main(names):
    known = golden()
    for name in names or recipes():
        with tempfile.TemporaryDirectory() as out:
            known[name] = {stage: numbers(path) for stage, path in run(name, Path(out)).items()}
    FILE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
