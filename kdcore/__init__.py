"""kdcore: knowledge distillation of causal language models with plugins and recipes.

`__all__` lists the public API; all subpackages are internal. Names are imported on first use, so
`import kdcore` loads neither torch nor transformers.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdcore.deprecated import MovedModules, old_name

if TYPE_CHECKING:
    from kdcore.api.component import Component as Component
    from kdcore.api.component import component as component
    from kdcore.api.component import hookimpl as hookimpl
    from kdcore.api.data import Data as Data
    from kdcore.api.data import Rollout as Rollout
    from kdcore.api.data import Tokenizer as Tokenizer
    from kdcore.api.hookspecs import Record as Record
    from kdcore.api.jobs import Executor as Executor
    from kdcore.api.jobs import Job as Job
    from kdcore.api.jobs import JobState as JobState
    from kdcore.api.loss import HiddenStatesLoss as HiddenStatesLoss
    from kdcore.api.loss import Loss as Loss
    from kdcore.api.observers import Eval as Eval
    from kdcore.api.observers import Logger as Logger
    from kdcore.api.options import describe as describe
    from kdcore.api.options import options_of as options_of
    from kdcore.api.options import reads_columns as reads_columns
    from kdcore.api.run import Run as Run
    from kdcore.api.run import Stage as Stage
    from kdcore.api.schedule import Schedule as Schedule
    from kdcore.api.schedule import Scheduled as Scheduled
    from kdcore.api.schedule import tensor_now as tensor_now
    from kdcore.api.schedule import value_now as value_now
    from kdcore.api.student import Patch as Patch
    from kdcore.api.teacher import CombinedTeacher as CombinedTeacher
    from kdcore.api.teacher import Teacher as Teacher
    from kdcore.api.tokens import PreparedLoss as PreparedLoss
    from kdcore.api.tokens import Selection as Selection
    from kdcore.api.tokens import Tokens as Tokens
    from kdcore.data.batch import Batch as Batch
    from kdcore.data.batch import GappedLogits as GappedLogits
    from kdcore.data.batch import LogitsFn as LogitsFn
    from kdcore.data.batch import OwnVocabulary as OwnVocabulary
    from kdcore.data.batch import Row as Row
    from kdcore.data.batch import Rows as Rows
    from kdcore.data.batch import SparseLogits as SparseLogits
    from kdcore.data.batch import Split as Split
    from kdcore.data.batch import StatesFn as StatesFn
    from kdcore.data.batch import TeacherOutputs as TeacherOutputs
    from kdcore.data.batch import columns_of as columns_of
    from kdcore.data.collate import on_host as on_host
    from kdcore.data.collate import pieces_of as pieces_of
    from kdcore.data.collate import select_rows as select_rows
    from kdcore.data.encoding import bos_of as bos_of
    from kdcore.data.given import join_rows as join_rows
    from kdcore.data.given import join_streams as join_streams
    from kdcore.data.rows import pack_documents as pack_documents
    from kdcore.data.rows import pack_texts as pack_texts
    from kdcore.data.special import SpecialTokens as SpecialTokens
    from kdcore.data.streaming import stream_texts as stream_texts
    from kdcore.errors import KdcoreError as KdcoreError
    from kdcore.errors import PluginError as PluginError
    from kdcore.errors import RecipeError as RecipeError
    from kdcore.errors import RunError as RunError
    from kdcore.errors import Unreachable as Unreachable
    from kdcore.errors import UsageError as UsageError
    from kdcore.hashing import tokenizer_hash as tokenizer_hash
    from kdcore.interrupts import stop_requested as stop_requested
    from kdcore.models.causal_lm import LanguageModel as LanguageModel
    from kdcore.models.completions import Completion as Completion
    from kdcore.models.completions import Prompt as Prompt
    from kdcore.models.completions import Sampling as Sampling
    from kdcore.models.completions import completions_from as completions_from
    from kdcore.models.completions import completions_state as completions_state
    from kdcore.models.decoding import NextTokens as NextTokens
    from kdcore.models.decoding import next_tokens as next_tokens
    from kdcore.models.decoding import sample as sample
    from kdcore.models.decoding import sample_from as sample_from
    from kdcore.models.generation import generate as generate
    from kdcore.models.loading import dtype_of as dtype_of
    from kdcore.models.loading import load_config as load_config
    from kdcore.models.loading import load_model as load_model
    from kdcore.models.loading import load_tokenizer as load_tokenizer
    from kdcore.models.loading import model_fingerprint as model_fingerprint
    from kdcore.objective.alignment import Piece as Piece
    from kdcore.objective.alignment import RetokenizedBatch as RetokenizedBatch
    from kdcore.objective.alignment import Retokenizer as Retokenizer
    from kdcore.objective.alignment import Spans as Spans
    from kdcore.objective.alignment import ids_of_same_bytes as ids_of_same_bytes
    from kdcore.objective.teachers import load_teacher as load_teacher
    from kdcore.objective.teachers import read as read
    from kdcore.objective.teachers import read_nll as read_nll
    from kdcore.objective.teachers import read_outputs as read_outputs
    from kdcore.redact import redact_secrets as redact_secrets
    from kdcore.runs.open import iter_batches as iter_batches
    from kdcore.runs.reading import facts as facts
    from kdcore.runs.reading import metrics as metrics
    from kdcore.runs.reading import summary as summary
    from kdcore.runs.reading.facts import Facts as Facts
    from kdcore.runs.reading.history import History as History
    from kdcore.runs.reading.history import Series as Series
    from kdcore.session import Result as Result
    from kdcore.session import check as check
    from kdcore.session import load as load
    from kdcore.session import plan as plan
    from kdcore.session import run as run
    from kdcore.terminal import formatting as formatting
    from kdcore.terminal.bars import progress as progress
    from kdcore.terminal.display import is_watched as is_watched
    from kdcore.terminal.display import show_live as show_live
    from kdcore.terminal.libraries import DownloadBar as DownloadBar
    from kdcore.training.non_finite import load_rows as load_rows

_MODULES = {
    "facts": "runs.reading.facts",
    "formatting": "terminal.formatting",
    "metrics": "runs.reading.metrics",
    "summary": "runs.reading.summary",
}
"""Modules that are public as a whole."""

_EXPORTS = {
    "api.component": "Component component hookimpl",
    "api.data": "Data Rollout Tokenizer",
    "api.hookspecs": "Record",
    "api.jobs": "Executor Job JobState",
    "api.loss": "HiddenStatesLoss Loss",
    "api.observers": "Eval Logger",
    "api.options": "describe options_of reads_columns",
    "api.run": "Run Stage",
    "api.schedule": "Schedule Scheduled tensor_now value_now",
    "api.student": "Patch",
    "api.teacher": "CombinedTeacher Teacher",
    "api.tokens": "PreparedLoss Selection Tokens",
    "data.batch": "TeacherOutputs Batch GappedLogits OwnVocabulary SparseLogits LogitsFn Row Rows "
    "Split StatesFn columns_of",
    "data.collate": "on_host pieces_of select_rows",
    "data.encoding": "bos_of",
    "models.completions": "Completion Prompt Sampling completions_from completions_state",
    "data.given": "join_rows join_streams",
    "data.rows": "pack_documents pack_texts",
    "data.special": "SpecialTokens",
    "data.streaming": "stream_texts",
    "errors": "KdcoreError PluginError RecipeError RunError Unreachable UsageError",
    "hashing": "tokenizer_hash",
    "models.causal_lm": "LanguageModel",
    "models.decoding": "NextTokens next_tokens sample sample_from",
    "models.generation": "generate",
    "models.loading": "dtype_of load_config load_model load_tokenizer model_fingerprint",
    "objective.alignment": "Piece RetokenizedBatch Retokenizer Spans ids_of_same_bytes",
    "objective.teachers": "load_teacher read read_nll read_outputs",
    "interrupts": "stop_requested",
    "redact": "redact_secrets",
    "runs.reading.facts": "Facts",
    "runs.reading.history": "History Series",
    "runs.open": "iter_batches",
    "session": "Result check load plan run",
    "terminal.bars": "progress",
    "terminal.display": "is_watched show_live",
    "terminal.libraries": "DownloadBar",
    "training.non_finite": "load_rows",
}

API_VERSION = 2
"""Incremented when plugins have to change; kdcore 0.1 had 1."""

_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names.split()}
__all__ = sorted([*_MODULE_OF, *_MODULES])

sys.meta_path.append(MovedModules())


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"kdcore.{_MODULES[name]}")
    if name == "__version__":
        from importlib.metadata import version

        return version("kdcore")
    if name not in _MODULE_OF:
        return old_name(name)
    return getattr(import_module(f"kdcore.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
