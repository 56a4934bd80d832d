"""Names of kdcore 0.1: public ones that changed still work, with a warning, until 1.0."""

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
"""Public names that changed -> the public name of today."""

INTERNAL = {
    "ChosenRow": "analysis.rows.SelectedRow",
    "Host": "plugin.manager.PluginManager",
    "KINDS": "api.contracts.KINDS",
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
    "open_model": "runs.deprecated.open_model",
    "open_run": "runs.deprecated.open_run",
    "open_stage": "runs.deprecated.open_unstarted",
    "plans_of": "analysis.plan.plans_of",
    "read_recipe": "recipe.recipe.read_recipe",
    "recipe_name": "recipe.files.recipe_name",
    "reserved_modules": "plugin.discovery.reserved_modules",
    "runs_in": "runs.folder.runs_in",
    "sample_rows": "analysis.rows.sample_rows",
    "shipped_recipes": "recipe.files.shipped_recipes",
    "what_counts": "recipe.merge.identity_fields",
}
"""Names that only kdcore's own verbs used: no longer public -> where they are."""

MOVED = {
    "adapters": "models.adapters",
    "addresses": "recipe.overrides",
    "ahead": "data.sampler",
    "annotations": "api.options",
    "assembling": "recipe.assemble",
    "bare": "runs.open",
    "batch": "data.batch",
    "batches": "data.collate",
    "bends": "models.causal_lm",
    "blame": "guard",
    "build": "recipe.build",
    "card": "runs.model_card",
    "checkpoint": "training.checkpoint",
    "choosing": "analysis.rows",
    "chunks": "training.micro_batch",
    "coarse": "objective.sparse",
    "compiled": "objective.losses",
    "complaints": "recipe.build",
    "confidential": "redact",
    "contract": "plugin.validation",
    "discovery": "plugin.discovery",
    "documents": "data.tokenized",
    "each": "recipe.overrides",
    "elsewhere": "runs.environment",
    "ends": "models.generation",
    "environment": "runs.environment",
    "estimate": "analysis.memory",
    "evaluate": "training.evaluation",
    "events": "plugin.manager",
    "extending": "runs.extend",
    "final": "runs.artifacts",
    "finding": "runs.folder",
    "fingerprints": "hashing",
    "finite": "training.non_finite",
    "folders": "runs.folder",
    "footprint": "analysis.memory_trace",
    "formula": "recipe.describe",
    "full_disk": "runs.folder",
    "gathering": "distributed",
    "generation": "models.generation",
    "given_rows": "data.given",
    "gradient_shares": "objective.gradient_shares",
    "head": "objective.chunked_loss",
    "hookspecs": "api.hookspecs",
    "hub": "models.loading",
    "identity": "recipe.merge",
    "language_model": "models.causal_lm",
    "launch": "cli.launch",
    "layouts": "data.packing",
    "links": "runs.folder",
    "loading": "plugin.loading",
    "locate": "recipe.toml_positions",
    "memory": "training.micro_batch",
    "merging": "recipe.merge",
    "micro_batch": "training.micro_batch",
    "offload": "models.adapters",
    "optimizer_state": "training.checkpoint",
    "optimizers": "optim",
    "option_types": "api.options",
    "options": "api.train_options",
    "overrides": "recipe.overrides",
    "packed_attention": "models.attention",
    "places": "models.locations",
    "planning": "analysis.plan",
    "plugins": "plugin.manager",
    "products": "models.head",
    "provenance": "plugin.discovery",
    "proving": "models.causal_lm",
    "random_state": "training.rng",
    "reading": "objective.teachers",
    "recipe_files": "recipe.files",
    "record": "api.hookspecs",
    "recorder": "training.metrics",
    "references": "recipe.merge",
    "refusals": "training.non_finite",
    "reopening": "runs.open",
    "replay": "training.non_finite",
    "requirements": "plugin.loading",
    "resolved": "recipe.describe",
    "rows": "data.rows",
    "rules": "recipe.assemble",
    "run": "training.run_state",
    "running": "runs.runner",
    "sampling": "analysis.rows",
    "schedule": "optim",
    "selecting": "objective.selection",
    "setup": "training.setup",
    "several": "data.tokenized",
    "signals": "training.signals",
    "sizes": "analysis.parameters",
    "stage": "api.contracts",
    "stages": "runs.runner",
    "stand_ins": "testing.fakes",
    "streamed_rows": "data.sampler",
    "streams": "data.streaming",
    "student": "training.student",
    "suitable": "objective.teachers",
    "tables": "recipe.node",
    "teachers": "objective.teachers",
    "token_store": "data.tokenized",
    "tokenizing": "runs.artifacts",
    "tokens": "objective.selection",
    "train": "training.trainer",
    "training_rows": "training.run_state",
    "trust": "models.locations",
    "unstarted": "runs.open",
    "verb_help": "cli.main",
    "vocabulary": "models.vocabulary",
    "written": "recipe.node",
}
"""Private modules of 0.1 -> the module that holds most of what was in them."""

MOVED_NAMES = {
    "api": ("contracts", "KINDS Component Data Eval Logger Loss Patch Selection Teacher Tokenizer"),
    "cli": ("main", "app host_of"),
    "objective": ("objective", "Choose Objective Seen"),
    "recipe": ("recipe", "Recipe StageTable read_recipe"),
}
"""Private modules whose name is a package today -> the module in it, and the names it held."""

_ADVICE = "plugins import from kdcore what kdcore.__all__ lists"


def old_name(name: str) -> Any:
    """What a public name of 0.1 stood for, with a warning that names its successor.

    Raises AttributeError where there was none.
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
    """Says where a private module of 0.1 went; asked only for modules that nothing else finds."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Raise ModuleNotFoundError for a module that moved."""
        package, _, old = fullname.partition(".")
        if package == "kdcore" and old in MOVED:
            raise ModuleNotFoundError(
                f"kdcore.{old} is now kdcore.{MOVED[old]}, and private: {_ADVICE}", name=fullname
            )


def moved_names(package: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package that was a module: says where its names went."""
    module, names = MOVED_NAMES[package]

    def look_up(name: str) -> Any:
        if name in names.split():
            raise ImportError(
                f"kdcore.{package}.{name} is now in kdcore.{package}.{module}, and private: "
                f"{_ADVICE}"
            )
        raise AttributeError(f"module 'kdcore.{package}' has no attribute {name!r}")

    return look_up
