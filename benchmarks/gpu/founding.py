"""The stages of the founding recipes as a GPU day runs them: what the hub has is replaced by
stand-ins, the steps are few, and nothing is evaluated or saved.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import standins
from roofline import STAGES, Stage
from world import World

if TYPE_CHECKING:
    from kdcore.analysis.plan import StagePlan
    from kdcore.recipe.recipe import Recipe

NEVER = 1_000_000
NAMES = [stage.name for stage in STAGES]


def stage_of(world: World, name: str) -> Stage:
    """The arithmetic of the stage; of a rehearsal's, its rows and tokens."""
    stage = next(each for each in STAGES if each.name == name)
    return replace(stage, rows=4, tokens=32, context=32) if world.rehearse else stage


def _models(world: World, *, weights: bool) -> dict[str, Path]:
    class Folders(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            make = standins.model if weights else standins.config_folder
            return make(world, name)

    return Folders()


def sets_of(world: World, name: str, *, weights: bool = True) -> list[str]:
    """What is set of the shipped recipe. Without `weights`, models are configs: for a plan."""
    recipe, _, stage = name.partition(".")
    at = f"stage.{stage}." if stage else ""
    found = [*_WAYS[recipe](world, stage, _models(world, weights=weights))]
    often = {"eval_first": False, "eval_every": NEVER, "save_every": NEVER}
    found += [f"{at}train.{key}={json.dumps(value)}" for key, value in often.items()]
    found += [f"{at}train.log_every={world.window}", f"{at}train.steps={NEVER}"]
    if world.rehearse:
        found += [f"{at}train.batch=4", f"{at}train.compile=false", *_small(world, name, at)]
        found.append("data.block=32" if recipe != "tinystories_llama" else "data.block=256")
    return found


def _rho(world: World, _: str, models: dict[str, Path]) -> Sequence[str]:
    train, validation = standins.texts(world, "qwen-0.5b", "lines")
    return [
        f'student.model="{models["qwen-0.5b"]}"',
        f'selection.reference.teacher.model="{models["qwen-1.5b"]}"',
        "data.config=",
        f'data.path="{train}"',
        f'data.validation="{validation}"',
        # Two windows fill the cache of the reference's losses, and all others read it.
        f"data.fraction={4 * 2 * world.window / (64 if world.rehearse else 4096)}",
    ]


def _qwen(world: World, stage: str, models: dict[str, Path]) -> Sequence[str]:
    train, validation = standins.texts(world, "qwen-0.5b", "dialogues")
    found = ["log=", "data.validation_share=", f'data.path="{train}"']
    found.append(f'data.validation="{validation}"')
    if stage == "teacher":
        return [*found, f'stage.teacher.student.model="{models[world.teacher]}"']
    found += ["stage.student.eval=", f'stage.student.teacher.model="{models[world.teacher]}"']
    return [*found, f'stage.student.student.model="{models["qwen-0.5b"]}"']


def _stories(world: World, _: str, models: dict[str, Path]) -> Sequence[str]:
    train, validation = standins.texts(world, "tinystories", "stories")
    ids = standins.tokenizer(world, "tinystories")
    found = [f'data.path="{train}"', f'data.validation="{validation}"', "data.fraction=1.0"]
    return [*found, f'tokenizer.model="{ids}"', "eval="]


def _babyllama(world: World, stage: str, models: dict[str, Path]) -> Sequence[str]:
    train, validation = standins.texts(world, "babyllama", "lines")
    block, ids = 32 if world.rehearse else 128, standins.tokenizer(world, "babyllama")
    data = f'use="text", path="{train}", validation="{validation}", block={block}, rows="chunk"'
    found = [f"data={{{data}}}", f'tokenizer={{use="hf", model="{ids}"}}']
    if stage == "student":
        members = ", ".join(f'{{use="hf", model="{models[n]}"}}' for n in ("gpt2", "llama"))
        found.append(f"stage.student.teacher.members=[{members}]")
    return found


_WAYS = {
    "rho_qwen": _rho,
    "qwen_kl_sft": _qwen,
    "tinystories_llama": _stories,
    "babyllama": _babyllama,
}


def _small(world: World, name: str, at: str) -> list[str]:
    """A student that is made from a config gets a tiny one."""
    shape = world.shape(stage_of(world, name).student).config()
    if name.startswith(("rho", "qwen")):
        return []
    typed = {key: value for key, value in shape.items() if key != "vocab_size"}
    return [f"{at}student.config.{key}={json.dumps(value)}" for key, value in typed.items()]


def read(world: World, name: str, sets: Sequence[str] = (), *, weights: bool = True) -> Recipe:
    """The recipe of a stage, with nothing but that stage."""
    from kdcore.plugin.manager import PluginManager
    from kdcore.recipe.recipe import read_recipe

    recipe, _, stage = name.partition(".")
    found = read_recipe(
        recipe, PluginManager(), sets=[*sets_of(world, name, weights=weights), *sets]
    )
    return replace(found, stages=[each for each in found.stages if each.name == stage])


def train(name: str) -> str:
    """Where a stage's `[train]` is, to be set."""
    _, _, stage = name.partition(".")
    return f"stage.{stage}.train" if stage else "train"


def plan_of(recipe: Recipe) -> StagePlan:
    """What `kdcore plan` says of its only stage."""
    from kdcore.analysis.plan import plans_of

    return next(iter(plans_of(recipe)))
