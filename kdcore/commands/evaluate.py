"""`kdcore eval`: the evaluations of a run, on finished runs and any other model."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from kdcore.cli.examples import examples
from kdcore.cli.main import plugin_manager
from kdcore.commands.fitting import Column, Fitting
from kdcore.commands.models import Named, named
from kdcore.commands.output import AsJson, Plugins, print_json, tell
from kdcore.errors import UsageError
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe
from kdcore.runs.open import (
    OpenRequest,
    begun,
    eval_stage,
    in_students_place,
    open_stage,
    run_folder,
    stage_outputs,
)
from kdcore.runs.reading.facts import read_settings
from kdcore.runs.reading.metrics import append_again
from kdcore.terminal.formatting import value
from kdcore.training.evaluation import run_evals
from kdcore.training.run_state import RunState

if TYPE_CHECKING:
    from kdcore.api.run import Stage


@examples(
    "kdcore eval last",
    "kdcore eval quickstart.kd --use perplexity",
    "kdcore eval ./student ./teacher --recipe mine.toml",
)
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(metavar="RUN|MODEL...", help="Runs, model folders or names on the hub."),
    ],
    uses: Annotated[
        list[str] | None,
        typer.Option("--use", metavar="NAME", help="Only this eval; may be repeated."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Take data, teacher and evals from it, not from the run.")
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="The stage of --recipe; by default the last.")
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="K=V", help="Change a key of the recipe.")
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="Evaluate this step's checkpoint, not the final weights.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    plugins: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate runs and models as a run would; results of runs are stored with them."""
    found = [named(name, out) for name in models]
    asked = _Asked(tuple(dict.fromkeys(uses or ())), tuple(sets or ()), recipe, stage, step, out)
    asked.refuse(found)
    opened = _Opened(asked, plugin_manager(plugins))
    results = [_measured(each, opened) for each in found]
    if as_json:
        print_json([result.plain() for result in results])
    else:
        _tell(results)


@dataclass(frozen=True)
class _Asked:
    uses: tuple[str, ...]
    sets: tuple[str, ...]
    recipe: str | None
    stage: str | None
    step: int | None
    out: Path

    def refuse(self, found: Sequence[Named]) -> None:
        """Conflicting options."""
        models = [each.name for each in found if each.run is None]
        if self.recipe is None and self.stage is not None:
            raise UsageError("--stage needs --recipe, the recipe that has the stage")
        if self.step is not None and (models or self.recipe is not None):
            other = "--recipe takes finished models" if self.recipe else f"{models[0]} is not a run"
            raise UsageError(f"--step is a checkpoint of a run that is measured as it ran; {other}")
        if models and self.recipe is None and not self.uses:
            raise UsageError(
                f"{models[0]} is not a run: --recipe R measures with the data, teacher and evals "
                "of a recipe, --use NAME with an eval that needs neither data nor teacher"
            )


class _Opened:
    """Opens runs and models for evaluation; reads a recipe once."""

    def __init__(self, asked: _Asked, host: PluginManager) -> None:
        self.asked, self.host = asked, host
        self.evals = asked.uses or None
        if asked.recipe is not None:
            self._read(asked.recipe)

    def _read(self, recipe: str) -> None:
        asked = self.asked
        only = asked.stage or ""
        self.recipe = read_recipe(recipe, self.host, sets=asked.sets, evals=asked.uses, only=only)
        for note in self.recipe.notes:
            print(note, file=sys.stderr)
        stages = [each.name for each in self.recipe.stages]
        self.stage = stages[-1] if asked.stage is None else asked.stage
        if self.stage not in stages:
            there = ", ".join(stages) if any(stages) else "it has none"
            raise UsageError(f"recipe {recipe!r} has no stage {self.stage!r}: {there}")

    def open(self, each: Named) -> RunState:
        """A run by its own recipe, or a model as a stage's student."""
        return open_stage(self._request(each))

    def _request(self, each: Named) -> OpenRequest:
        asked = self.asked
        if asked.recipe is not None:
            folder = run_folder(self.recipe, self.stage, asked.out)
            return in_students_place(each.model(), self._built(), folder, self.evals)
        if each.run is not None:
            return begun(each.run, self.host, step=asked.step, sets=asked.sets, evals=self.evals)
        stage = eval_stage(each.name, asked.uses, self.host, asked.sets)
        return in_students_place(each.name, stage, asked.out / "eval")

    def _built(self) -> Stage:
        """The recipe's stage, with the finished runs of stages that it refers to."""
        finals = stage_outputs(self.recipe, self.stage, self.asked.out)
        stage = self.recipe.build(self.stage, finals)
        evals = [one for one in stage.evals if self.evals is None or one.name in self.evals]
        asks_teacher = any(one.needs_teacher for one in evals)
        teacher = str(stage.table.get("teacher")) if asks_teacher else ""
        for name, final in finals.items():
            if not final.is_dir() and str(final) in teacher:
                raise UsageError(
                    f"the teacher is the stage {name!r}, which is not finished in "
                    f"{self.asked.out}: kdcore run {self.asked.recipe} --stage {name} makes it"
                )
        return stage


@dataclass(frozen=True)
class _Result:
    named: Named
    step: int | None
    kept: bool  # stored in the run's metrics.jsonl
    scores: Mapping[str, float | str]

    def plain(self) -> dict[str, Any]:
        """JSON values; null for non-finite ones."""
        return {
            "model": self.named.name,
            "run": None if self.named.run is None else str(self.named.run),
            "step": self.step,
            "kept": self.kept,
            "scores": {
                name: score if isinstance(score, str) or math.isfinite(score) else None
                for name, score in self.scores.items()
            },
        }


def _measured(each: Named, opened: _Opened) -> _Result:
    run = opened.open(each)
    print(f"{each.name}: {', '.join(one.name for one in run.recipe.evals)}", file=sys.stderr)
    scores = run_evals(run)
    asked, folder = opened.asked, each.run
    if folder is None or asked.recipe is not None:
        return _Result(each, None, False, scores)
    at_end = each.finished and asked.step is None
    kept = at_end and not _changed(folder, asked.sets)
    if kept:
        kept = append_again(folder, run.step, scores, shlex.join(asked.sets))
    elif at_end:
        said = "--set changes what the run itself measures, so its record stays as it is"
        print(f"{each.name}: {said}", file=sys.stderr)
    return _Result(each, run.step, kept, scores)


def _changed(run: Path, sets: Sequence[str]) -> bool:
    """Whether a set option is part of the run: all but options of evals that it lacks."""
    own = {table.get("use") for table in read_settings(run).get("eval", [])}
    addresses = [text.partition("=")[0].strip().split(".") for text in sets]
    return any(
        parts[0] != "eval" or len(parts) < 3 or parts[1] in own or parts[1].isdigit()
        for parts in addresses
    )


def _tell(results: Sequence[_Result]) -> None:
    """Numbers as a table with a column per model, then texts."""
    scores = [result.scores for result in results]
    names = dict.fromkeys(name for each in scores for name in each)
    numbers = [n for n in names if not any(isinstance(each.get(n), str) for each in scores)]
    columns = [Column("eval", numbers, len(results) + 1, is_number=False)]
    for importance, result in zip(range(len(results), 0, -1), results, strict=True):
        cells = [_cell(result.scores.get(name)) for name in numbers]
        columns.append(Column(_title(result), cells, importance))
    if numbers:
        tell(Fitting(columns, whole="--json has all"))
    for name in [name for name in names if name not in numbers]:
        for result in results:
            tell("", Text(f"{name}, {_title(result)}", "dim"), Text(str(result.scores.get(name))))


def _cell(score: float | str | None) -> str:
    assert not isinstance(score, str)
    return value(score)


def _title(result: _Result) -> str:
    return result.named.name if result.step is None else f"{result.named.name} (step {result.step})"
