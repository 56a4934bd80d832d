"""`kdcore show --data RECIPE --rollouts`: completions of a recipe's rollout before training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.padding import Padding
from rich.text import Text

from kdcore.analysis.rollouts import RolloutSample, sample_rollouts
from kdcore.cli.main import plugin_manager
from kdcore.commands.output import print_json, tell
from kdcore.commands.rows.options import Looking
from kdcore.errors import UsageError
from kdcore.recipe.recipe import read_recipe

_ROWS = 3
_MARGIN = (0, 0, 0, 2)


def show_rollouts(looking: Looking) -> None:
    """Completions of the prompts of some rows."""
    if len(looking.names) != 1:
        raise UsageError("show --data takes one recipe, such as: kdcore show --data quickstart")
    if looking.html is not None:
        raise UsageError("--html is for rows of tokens; answers are printed, or --json")
    recipe = read_recipe(looking.names[0], plugin_manager([*looking.plugins]), sets=looking.sets)
    rows = _ROWS if looking.rows is None else looking.rows
    samples = sample_rollouts(recipe, stage=looking.stage, out=looking.out, rows=rows)
    if looking.as_json:
        print_json([one for sample in samples for one in _objects(sample)])
        return
    for sample in samples:
        tell(Text(sample.run_name, "bold"), Text(f"  {sample.writer}", "cyan"), "")
        for one in _objects(sample):
            ended = "ended by itself" if one["finished"] else "cut"
            tell(Text(f"  {one['source']}: {one['tokens']} tokens, {ended}", "cyan"))
            tell(
                Padding(Text(one["prompt"], "dim"), _MARGIN),
                Padding(Text(one["text"]), _MARGIN),
                "",
            )


def _objects(sample: RolloutSample) -> Iterator[dict[str, Any]]:
    for one in sample.answers:
        prompt = [] if one.prompt is None else [*one.prompt.ids]
        yield {
            "run": sample.run_name,
            "source": one.source,
            "finished": one.finished,
            "tokens": len(one.ids),
            "prompt": sample.tokenizer.decode(prompt),
            "text": sample.tokenizer.decode([*one.ids]),
        }
