"""Outputs of a run: its tokenizer and its final model."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from kdcore.checksums import damage, keep
from kdcore.distributed.disks import bring, main_first
from kdcore.document_losses import DOCUMENTS
from kdcore.files import move_into_place
from kdcore.guard import call_checked
from kdcore.models.causal_lm import LanguageModel
from kdcore.models.generation import add_stop_tokens, learned_stop_tokens
from kdcore.models.loading import load_tokenizer
from kdcore.runs.folder import FINAL, TOKENIZER
from kdcore.runs.model_card import model_card
from kdcore.terminal.bars import progress
from kdcore.terminal.libraries import without_bars
from kdcore.training.student import finished

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kdcore.api.run import Stage
    from kdcore.sharding.layout import Layout
    from kdcore.training.run_state import RunState


_KEY = "kdcore-key.txt"
_log = logging.getLogger("kdcore")


def load_tokenizer_of(
    run: RunState, others: Sequence[Path], accelerator: Accelerator | None
) -> PreTrainedTokenizerBase:
    """The run's tokenizer: its saved one, another stage's, or a new one.

    Always uses the saved one, so that a resumed run has exactly the same.
    """
    with nullcontext() if accelerator is None else main_first(accelerator):
        if run.main:
            _keep_tokenizer(run, others)
    if accelerator is not None:
        bring(accelerator, run.disk, run.folder / TOKENIZER)
    return load_tokenizer(str(run.folder / TOKENIZER))


def _keep_tokenizer(run: RunState, others: Sequence[Path]) -> None:
    """Save the tokenizer in the run folder, unless it is there complete."""
    kept = run.folder / TOKENIZER
    problem = damage(kept)
    if problem is not None:  # a damaged one is compared with what the run started with
        _log.warning("%s: the tokenizer is rebuilt", problem)
    if problem is not None or not kept.exists():
        _save_tokenizer(run, others, kept)


def _save_tokenizer(run: RunState, others: Sequence[Path], kept: Path) -> None:
    key = _key(run.recipe)
    same = (path / TOKENIZER for path in others)
    found = next((path for path in same if damage(path) is None and _key_of(path) == key), None)
    partial = kept.with_name(f".{TOKENIZER}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if found is not None:
        shutil.copytree(found, partial)
    else:
        _loaded_tokenizer(run).save_pretrained(partial)
        (partial / _KEY).write_text(key)
    keep(run.folder, TOKENIZER, partial)
    move_into_place(partial, kept)


def _loaded_tokenizer(run: RunState) -> PreTrainedTokenizerBase:
    stage = run.recipe
    if stage.tokenizer is not None:
        from transformers import PreTrainedTokenizerBase

        arguments = (run, stage.tokenizer_data)
        tokenizer: PreTrainedTokenizerBase = call_checked(
            stage.tokenizer, "load", *arguments, of=PreTrainedTokenizerBase
        )
        return tokenizer
    assert stage.student.model is not None, "the recipe's check asks for a tokenizer otherwise"
    return load_tokenizer(stage.student.model, key="student.model")


def _key(stage: Stage) -> str:
    if stage.tokenizer is None:
        said = f"student {stage.student.model}"
    else:
        each = (stage.tokenizer, stage.tokenizer_data)
        said = " ".join(call_checked(one, "fingerprint", of=str) for one in each)
    return hashlib.sha256(said.encode()).hexdigest()


def _key_of(folder: Path) -> str | None:
    path = folder / _KEY
    return path.read_text() if path.exists() else None


def finish_student(run: RunState, layout: Layout) -> PreTrainedModel | None:
    """Apply `Patch.finish` on every process, so that later calls see the same student.

    Returns the student to save. If it is sharded, only the main process gathers and finishes it.
    """
    gathered = layout.whole(run.student, keep=run.main)
    if gathered is None:
        return None
    model = finished(gathered, run.recipe.student.patches)
    if model is not gathered and not layout.sharded:
        run.language_model = LanguageModel(model, run.language_model.precision)
    return model


def save_final(run: RunState, student: PreTrainedModel) -> Path:
    """Write the finished student to a temporary folder, then rename it."""
    add_stop_tokens(student, learned_stop_tokens(run.rows("validation"), run.tokenizer))
    target, partial = run.folder / FINAL, run.folder / f".{FINAL}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with without_bars(), progress("saving the student"):
        student.save_pretrained(partial)
    run.tokenizer.save_pretrained(partial)
    (partial / "README.md").write_text(model_card(run))
    keep(run.folder, FINAL, partial)
    if (run.folder / DOCUMENTS).is_dir():
        keep(run.folder, DOCUMENTS, run.folder / DOCUMENTS)
    move_into_place(partial, target)
    return target
