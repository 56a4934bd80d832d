"""Deprecated names of kdcore 0.1: renamed public names work with a warning until 1.0."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import Any

RENAMED = {
    "AnswersAt": "TeacherOutputs",
    "Coarse": "SparseLogits",
    "LogitsAt": "LogitsFn",
    "as_typed": "describe",
    "batches_of": "iter_batches",
    "lay_documents": "pack_documents",
    "lay_texts": "pack_texts",
    "of_tokenizer": "tokenizer_hash",
    "saved_rows": "load_rows",
    "without_secrets": "redact_secrets",
}
"""Public names that changed -> the current public name."""

INTERNAL = {
    "ChosenRow": "analysis.rows.SelectedRow",
    "Host": "plugin.manager.PluginManager",
    "KINDS": "api.kinds.KINDS",
    "RowSample": "analysis.rows.RowSample",
    "SampledRow": "analysis.rows.SampledRow",
    "StagePlan": "analysis.plan.StagePlan",
    "bare_stage": "runs.open.eval_stage",
    "chosen_rows": "analysis.rows.selected_rows",
    "environment_of": "runs.environment.environment_of",
    "finals_of": "runs.open.stage_outputs",
    "find_recipe": "recipe.files.find_recipe",
    "find_run": "runs.folder.find_run",
    "folder_of": "runs.open.run_folder",
    "host_of": "cli.main.plugin_manager",
    "measured": "training.evaluation.run_evals",
    "open_model": "cli.deprecated.open_model",
    "open_run": "cli.deprecated.open_run",
    "open_stage": "cli.deprecated.open_unstarted",
    "plans_of": "analysis.plan.plans_of",
    "read_recipe": "recipe.recipe.read_recipe",
    "recipe_name": "recipe.files.recipe_name",
    "reserved_modules": "plugin.discovery.reserved_modules",
    "runs_in": "runs.folder.runs_in",
    "sample_rows": "analysis.rows.sample_rows",
    "shipped_recipes": "recipe.files.shipped_recipes",
    "what_counts": "recipe.merge.identity_fields",
}
"""Names that only kdcore's own commands used: no longer public -> their module."""

_HELD = {
    "analysis.memory": "estimate",
    "analysis.memory_trace": "footprint",
    "analysis.parameters": "sizes",
    "analysis.plan": "planning",
    "analysis.rows": "choosing sampling",
    "api.hookspecs": "hookspecs record",
    "api.options": "annotations option_types",
    "api.run": "stage",
    "api.train_options": "options",
    "cli.launch": "launch",
    "cli.main": "verb_help",
    "data.batch": "batch",
    "data.collate": "batches",
    "data.given": "given_rows",
    "data.packing": "layouts",
    "data.rows": "rows",
    "data.sampler": "ahead streamed_rows",
    "data.streaming": "streams",
    "data.tokenized": "documents several token_store",
    "distributed": "gathering",
    "guard": "blame",
    "hashing": "fingerprints",
    "models.adapters": "adapters",
    "models.attention": "packed_attention",
    "models.causal_lm": "bends language_model proving",
    "models.generation": "ends generation",
    "models.head": "products",
    "models.loading": "hub",
    "models.locations": "places trust",
    "models.offload": "offload",
    "models.vocabulary": "vocabulary",
    "objective.chunked_loss": "head",
    "objective.gradient_shares": "gradient_shares",
    "objective.losses": "compiled",
    "objective.selection": "selecting tokens",
    "objective.sparse": "coarse",
    "objective.teachers": "reading suitable teachers",
    "optim": "optimizers schedule",
    "plugin.discovery": "discovery provenance",
    "plugin.loading": "loading requirements",
    "plugin.manager": "events plugins",
    "plugin.validation": "contract",
    "recipe.assemble": "assembling rules",
    "recipe.build": "build complaints",
    "recipe.describe": "formula resolved",
    "recipe.files": "recipe_files",
    "recipe.merge": "identity merging references",
    "recipe.node": "tables written",
    "recipe.overrides": "addresses each overrides",
    "recipe.toml_positions": "locate",
    "redact": "confidential",
    "runs.artifacts": "final tokenizing",
    "runs.environment": "elsewhere environment",
    "runs.extend": "extending",
    "runs.folder": "finding folders full_disk links",
    "runs.model_card": "card",
    "runs.open": "bare reopening unstarted",
    "runs.runner": "running stages",
    "testing.fakes": "stand_ins",
    "training.checkpoints.saving": "checkpoint optimizer_state",
    "training.evaluation": "evaluate",
    "training.metrics": "recorder",
    "training.micro_batch": "chunks memory micro_batch",
    "training.non_finite": "finite refusals replay",
    "rng": "random_state",
    "training.run_state": "run training_rows",
    "training.setup": "setup",
    "training.signals": "signals",
    "training.student": "student",
    "training.trainer": "train",
}
"""Modules -> the private modules of 0.1 that most of their content was in."""

MOVED = {old: module for module, names in _HELD.items() for old in names.split()}
"""Private modules of 0.1 -> the module that holds most of their content."""

MOVED_NAMES = {
    "api": {
        "component": "Component",
        "data": "Data Tokenizer",
        "loss": "Loss",
        "observers": "Eval Logger",
        "student": "Patch",
        "teacher": "Teacher",
        "tokens": "Selection",
    },
    "cli": {"main": "app host_of"},
    "objective": {"objective": "Choose Objective Seen"},
    "recipe": {"recipe": "Recipe StageTable read_recipe"},
}
"""Private modules of 0.1 that are packages now -> by module in them, the names they had."""

_ADVICE = "plugins import from kdcore what kdcore.__all__ lists"


def old_name(name: str) -> Any:
    """The object of a public name of 0.1, with a warning that names its successor.

    Raises AttributeError if there is none.
    """
    if name in RENAMED:
        new, said = f"kdcore.{RENAMED[name]}", f"kdcore.{RENAMED[name]}"
        found = getattr(import_module("kdcore"), RENAMED[name])
    elif name in INTERNAL:
        new = f"kdcore.{INTERNAL[name]}"
        said = f"{new}, and private"
        module, _, attribute = new.rpartition(".")
        found = getattr(import_module(module), attribute)
    else:
        raise AttributeError(f"module 'kdcore' has no attribute {name!r}")
    text = f"kdcore.{name} is now {said}; the old name works until kdcore 1.0"
    warnings.warn(text, DeprecationWarning, stacklevel=3)
    return found


class MovedModules(MetaPathFinder):
    """An import finder that says where a private module of 0.1 went; consulted last."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Raise ModuleNotFoundError for a module that moved."""
        package, _, old = fullname.partition(".")
        if package == "kdcore" and old in MOVED:
            raise ModuleNotFoundError(
                f"kdcore.{old} is now kdcore.{MOVED[old]}, and private: {_ADVICE}", name=fullname
            )


def moved_names(package: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package that was a module: says where its names went."""
    modules = {
        name: module for module, names in MOVED_NAMES[package].items() for name in names.split()
    }

    def look_up(name: str) -> Any:
        if name in modules:
            raise ImportError(
                f"kdcore.{package}.{name} is now in kdcore.{package}.{modules[name]}, and private: "
                f"{_ADVICE}"
            )
        raise AttributeError(f"module 'kdcore.{package}' has no attribute {name!r}")

    return look_up
