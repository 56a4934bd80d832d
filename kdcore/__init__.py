"""kdcore: distillation and loss experiments on causal language models, as plugins and recipes.

What `__all__` lists is the public API; every subpackage is internal. Names are imported when they
are first used, so that `import kdcore` needs neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdcore.analysis.plan import StagePlan as StagePlan
    from kdcore.analysis.plan import plans_of as plans_of
    from kdcore.analysis.rows import ChosenRow as ChosenRow
    from kdcore.analysis.rows import RowSample as RowSample
    from kdcore.analysis.rows import SampledRow as SampledRow
    from kdcore.analysis.rows import chosen_rows as chosen_rows
    from kdcore.analysis.rows import sample_rows as sample_rows
    from kdcore.api.contracts import KINDS as KINDS
    from kdcore.api.contracts import Component as Component
    from kdcore.api.contracts import Data as Data
    from kdcore.api.contracts import Eval as Eval
    from kdcore.api.contracts import Logger as Logger
    from kdcore.api.contracts import Loss as Loss
    from kdcore.api.contracts import Patch as Patch
    from kdcore.api.contracts import PreparedLoss as PreparedLoss
    from kdcore.api.contracts import Run as Run
    from kdcore.api.contracts import Selection as Selection
    from kdcore.api.contracts import Stage as Stage
    from kdcore.api.contracts import Teacher as Teacher
    from kdcore.api.contracts import Tokenizer as Tokenizer
    from kdcore.api.contracts import Tokens as Tokens
    from kdcore.api.contracts import component as component
    from kdcore.api.contracts import hookimpl as hookimpl
    from kdcore.api.hookspecs import Record as Record
    from kdcore.api.options import as_typed as as_typed
    from kdcore.api.options import options_of as options_of
    from kdcore.cli.main import host_of as host_of
    from kdcore.data.batch import AnswersAt as AnswersAt
    from kdcore.data.batch import Batch as Batch
    from kdcore.data.batch import Coarse as Coarse
    from kdcore.data.batch import LogitsAt as LogitsAt
    from kdcore.data.batch import Row as Row
    from kdcore.data.batch import Rows as Rows
    from kdcore.data.batch import Split as Split
    from kdcore.data.encoding import bos_of as bos_of
    from kdcore.data.rows import lay_documents as lay_documents
    from kdcore.data.rows import lay_texts as lay_texts
    from kdcore.data.streaming import stream_texts as stream_texts
    from kdcore.errors import KdcoreError as KdcoreError
    from kdcore.errors import PluginError as PluginError
    from kdcore.errors import RecipeError as RecipeError
    from kdcore.errors import RunError as RunError
    from kdcore.errors import UsageError as UsageError
    from kdcore.hashing import of_tokenizer as of_tokenizer
    from kdcore.models.causal_lm import LanguageModel as LanguageModel
    from kdcore.models.generation import generate as generate
    from kdcore.models.loading import dtype_of as dtype_of
    from kdcore.models.loading import load_config as load_config
    from kdcore.models.loading import load_model as load_model
    from kdcore.models.loading import load_tokenizer as load_tokenizer
    from kdcore.models.loading import model_fingerprint as model_fingerprint
    from kdcore.objective.teachers import load_teacher as load_teacher
    from kdcore.objective.teachers import read as read
    from kdcore.objective.teachers import read_nll as read_nll
    from kdcore.plugin.discovery import reserved_modules as reserved_modules
    from kdcore.plugin.manager import Host as Host
    from kdcore.recipe.files import find_recipe as find_recipe
    from kdcore.recipe.files import recipe_name as recipe_name
    from kdcore.recipe.files import shipped_recipes as shipped_recipes
    from kdcore.recipe.merge import what_counts as what_counts
    from kdcore.recipe.recipe import read_recipe as read_recipe
    from kdcore.redact import without_secrets as without_secrets
    from kdcore.runs.environment import environment_of as environment_of
    from kdcore.runs.folder import find_run as find_run
    from kdcore.runs.folder import runs_in as runs_in
    from kdcore.runs.open import bare_stage as bare_stage
    from kdcore.runs.open import batches_of as batches_of
    from kdcore.runs.open import finals_of as finals_of
    from kdcore.runs.open import folder_of as folder_of
    from kdcore.runs.open import open_model as open_model
    from kdcore.runs.open import open_run as open_run
    from kdcore.runs.open import open_stage as open_stage
    from kdcore.session import Result as Result
    from kdcore.session import check as check
    from kdcore.session import load as load
    from kdcore.session import plan as plan
    from kdcore.session import run as run
    from kdcore.training.evaluation import measured as measured
    from kdcore.training.non_finite import saved_rows as saved_rows

_EXPORTS = {
    "analysis.plan": "StagePlan plans_of",
    "analysis.rows": "ChosenRow RowSample SampledRow chosen_rows sample_rows",
    "api.contracts": "Component Data Eval KINDS Logger Loss Patch PreparedLoss Run Selection "
    "Stage Teacher Tokenizer Tokens component hookimpl",
    "api.hookspecs": "Record",
    "api.options": "as_typed options_of",
    "cli.main": "host_of",
    "data.batch": "AnswersAt Batch Coarse LogitsAt Row Rows Split",
    "data.encoding": "bos_of",
    "data.rows": "lay_documents lay_texts",
    "data.streaming": "stream_texts",
    "errors": "KdcoreError PluginError RecipeError RunError UsageError",
    "hashing": "of_tokenizer",
    "models.causal_lm": "LanguageModel",
    "models.generation": "generate",
    "models.loading": "dtype_of load_config load_model load_tokenizer model_fingerprint",
    "objective.teachers": "load_teacher read read_nll",
    "plugin.discovery": "reserved_modules",
    "plugin.manager": "Host",
    "recipe.files": "find_recipe recipe_name shipped_recipes",
    "recipe.merge": "what_counts",
    "recipe.recipe": "read_recipe",
    "redact": "without_secrets",
    "runs.environment": "environment_of",
    "runs.folder": "find_run runs_in",
    "runs.open": "bare_stage batches_of finals_of folder_of open_model open_run open_stage",
    "session": "Result check load plan run",
    "training.evaluation": "measured",
    "training.non_finite": "saved_rows",
}

_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names.split()}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'kdcore' has no attribute {name!r}")
    return getattr(import_module(f"kdcore.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
