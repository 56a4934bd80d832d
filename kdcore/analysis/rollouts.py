"""Sample completions of a recipe's rollout, before any training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from kdcore.api.data import Rollout
from kdcore.api.options import describe
from kdcore.api.run import Stage
from kdcore.data.sampler import random_subset
from kdcore.data.streaming import Stream
from kdcore.errors import UsageError
from kdcore.guard import call_checked
from kdcore.models.completions import Completion
from kdcore.objective.teachers import load_teacher
from kdcore.rollout.prompts import cutter_of
from kdcore.rollout.writing import write
from kdcore.runs.folder import FINAL
from kdcore.runs.open import OpenRequest, open_stage, run_folder, stage_outputs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kdcore.recipe.recipe import Recipe
    from kdcore.training.run_state import RunState


@dataclass(frozen=True, eq=False)
class RolloutSample:
    """Completions of one stage's rollout, each with its prompt."""

    run_name: str
    writer: str  # as a call, without defaults
    tokenizer: PreTrainedTokenizerBase
    answers: Sequence[Completion]


def sample_rollouts(
    recipe: Recipe, *, stage: str | None, out: Path, rows: int
) -> Iterator[RolloutSample]:
    """For each stage with a rollout, or the named one: completions of some rows' prompts.

    Stages that it needs must be finished in `out`. Loads weights.
    """
    names = [each.name for each in recipe.stages if stage in (None, each.name)]
    built = [recipe.build(name, stage_outputs(recipe, name, out)) for name in names]
    writing = [each for each in built if each.rollout is not None]
    if not writing:
        raise UsageError("no stage of the recipe has a [rollout], so nothing is written")
    for each in writing:
        for need, final in stage_outputs(recipe, each.name, out).items():
            if not final.is_dir():
                raise UsageError(
                    f"the stage {each.name!r} begins from @{need}, which is not finished in {out}: "
                    f"kdcore run {recipe.path} --stage {need}"
                )
        with TemporaryDirectory(prefix="kdcore-rollouts-") as folder:
            yield _sample(recipe, each, out, Path(folder), rows)


def _sample(recipe: Recipe, stage: Stage, out: Path, folder: Path, rows: int) -> RolloutSample:
    others = [run_folder(recipe, each.name, out) for each in recipe.stages]
    there = [each for each in others if (each / FINAL).is_dir()]
    run = open_stage(OpenRequest(stage, folder, trusted=stage.trusted, others=there))
    writer = stage.rollout
    assert writer is not None, "only stages that write come here"
    answers = _written(run, writer, rows)
    return RolloutSample(stage.run_name, describe(writer), run.tokenizer, answers)


def _written(run: RunState, writer: Rollout, rows: int) -> list[Completion]:
    stage, dataset = run.recipe, run.laid("train")
    if run.teacher is not None and call_checked(writer, "needs_teacher", of=bool):
        load_teacher(run, run.teacher)
    load_teacher(run, writer)
    first = dataset.first_window() if isinstance(dataset, Stream) else dataset
    cutter = cutter_of(stage)
    prompts = [
        prompt
        for index in random_subset(len(first), rows, run.seed)
        for prompt in cutter.prompts(first[int(index)], 1, int(index))
    ]
    answers = write(run, writer, prompts, stage.writing.group(stage.data.block))
    return [completion for completions in answers for completion in completions]
