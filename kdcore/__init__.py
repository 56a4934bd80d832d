"""kdcore: distillation and loss experiments on causal language models, as plugins and recipes.

What `__all__` lists is the public API; all else is private. Names are loaded when they are first
asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdcore.api import (
        KINDS,
        Component,
        Data,
        Eval,
        Logger,
        Loss,
        Patch,
        Selection,
        Teacher,
        Tokenizer,
        component,
        hookimpl,
    )
    from kdcore.bare import bare_stage
    from kdcore.batch import AnswersAt, Batch, LogitsAt, Row, Rows, Split
    from kdcore.build import options_of
    from kdcore.choosing import ChosenRow, chosen_rows
    from kdcore.cli import host_of
    from kdcore.coarse import Coarse
    from kdcore.confidential import without_secrets
    from kdcore.environment import environment_of
    from kdcore.errors import KdcoreError, PluginError, RecipeError, RunError, UsageError
    from kdcore.evaluate import measured
    from kdcore.finding import find_recipe, find_run, recipe_name, runs_in, shipped_recipes
    from kdcore.fingerprints import as_typed, of_tokenizer
    from kdcore.generation import generate
    from kdcore.hub import dtype_of, load_config, load_model, load_tokenizer, model_fingerprint
    from kdcore.identity import what_counts
    from kdcore.language_model import LanguageModel
    from kdcore.planning import StagePlan, plans_of
    from kdcore.plugins import Host
    from kdcore.provenance import reserved_modules
    from kdcore.reading import read, read_nll
    from kdcore.recipe import read_recipe
    from kdcore.record import Record
    from kdcore.reopening import finals_of, folder_of, open_model, open_run
    from kdcore.replay import saved_rows
    from kdcore.rows import lay_documents, lay_texts
    from kdcore.run import Run
    from kdcore.sampling import RowSample, SampledRow, sample_rows
    from kdcore.stage import Stage
    from kdcore.streams import stream_texts
    from kdcore.teachers import load_teacher
    from kdcore.tokens import Tokens
    from kdcore.unstarted import batches_of, open_stage

_HOME = {
    "api": "KINDS Component Data Eval Logger Loss Patch Selection Teacher Tokenizer "
    "component hookimpl",
    "bare": "bare_stage",
    "batch": "AnswersAt Batch LogitsAt Row Rows Split",
    "build": "options_of",
    "choosing": "ChosenRow chosen_rows",
    "cli": "host_of",
    "coarse": "Coarse",
    "confidential": "without_secrets",
    "environment": "environment_of",
    "evaluate": "measured",
    "errors": "KdcoreError PluginError RecipeError RunError UsageError",
    "fingerprints": "as_typed of_tokenizer",
    "finding": "find_recipe find_run recipe_name runs_in shipped_recipes",
    "generation": "generate",
    "hub": "dtype_of load_config load_model load_tokenizer model_fingerprint",
    "identity": "what_counts",
    "language_model": "LanguageModel",
    "planning": "StagePlan plans_of",
    "plugins": "Host",
    "provenance": "reserved_modules",
    "reading": "read read_nll",
    "recipe": "read_recipe",
    "record": "Record",
    "reopening": "finals_of folder_of open_model open_run",
    "replay": "saved_rows",
    "rows": "lay_documents lay_texts",
    "streams": "stream_texts",
    "run": "Run",
    "stage": "Stage",
    "sampling": "RowSample SampledRow sample_rows",
    "teachers": "load_teacher",
    "tokens": "Tokens",
    "unstarted": "batches_of open_stage",
}
_WHERE = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = [
    "KINDS",
    "AnswersAt",
    "Batch",
    "ChosenRow",
    "Coarse",
    "Component",
    "Data",
    "Eval",
    "Host",
    "KdcoreError",
    "LanguageModel",
    "Logger",
    "LogitsAt",
    "Loss",
    "Patch",
    "PluginError",
    "RecipeError",
    "Record",
    "Row",
    "RowSample",
    "Rows",
    "Run",
    "RunError",
    "SampledRow",
    "Selection",
    "Split",
    "Stage",
    "StagePlan",
    "Teacher",
    "Tokenizer",
    "Tokens",
    "UsageError",
    "as_typed",
    "bare_stage",
    "batches_of",
    "chosen_rows",
    "component",
    "dtype_of",
    "environment_of",
    "finals_of",
    "find_recipe",
    "find_run",
    "folder_of",
    "generate",
    "hookimpl",
    "host_of",
    "lay_documents",
    "lay_texts",
    "load_config",
    "load_model",
    "load_teacher",
    "load_tokenizer",
    "measured",
    "model_fingerprint",
    "of_tokenizer",
    "open_model",
    "open_run",
    "open_stage",
    "options_of",
    "plans_of",
    "read",
    "read_nll",
    "read_recipe",
    "recipe_name",
    "reserved_modules",
    "runs_in",
    "sample_rows",
    "saved_rows",
    "shipped_recipes",
    "stream_texts",
    "what_counts",
    "without_secrets",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'kdcore' has no attribute {name!r}")
    return getattr(import_module(f"kdcore.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
