"""The tokenizer of a run: kept in its folder, shared by the stages that ask for the same one."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdcore.blame import asked
from kdcore.folders import move_into_place
from kdcore.hub import load_tokenizer

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from kdcore.recipe import Stage
    from kdcore.run import Run

_FOLDER = "tokenizer"
_KEY = "kdcore-key.txt"


def load_tokenizer_of(
    run: Run, others: Sequence[Path], accelerator: Accelerator
) -> PreTrainedTokenizerBase:
    """The run's tokenizer: its own kept one, another stage's, or a new one.

    What is used is always what was kept, so that a continued run has just the same.
    """
    if run.main:
        keep_tokenizer(run, others)
    accelerator.wait_for_everyone()
    return load_tokenizer(str(run.folder / _FOLDER))


def keep_tokenizer(run: Run, others: Sequence[Path]) -> Path:
    """Lay the tokenizer of a run into its folder, if it is not there; where it lies."""
    kept, key = run.folder / _FOLDER, _key(run.recipe)
    if not kept.exists():
        same = (path / _FOLDER for path in others)
        found = next((path for path in same if _key_of(path) == key), None)
        beside = kept.with_name(f".{_FOLDER}.partial")
        shutil.rmtree(beside, ignore_errors=True)
        if found is not None:
            shutil.copytree(found, beside)
        else:
            _made(run).save_pretrained(beside)
            (beside / _KEY).write_text(key)
        move_into_place(beside, kept)
    return kept


def _made(run: Run) -> PreTrainedTokenizerBase:
    stage = run.recipe
    if stage.tokenizer is not None:
        from transformers import PreTrainedTokenizerBase

        arguments = (run, stage.tokenizer_data)
        made: PreTrainedTokenizerBase = asked(
            stage.tokenizer, "load", *arguments, of=PreTrainedTokenizerBase
        )
        return made
    assert stage.student.model is not None, "the recipe's check asks for a tokenizer otherwise"
    return load_tokenizer(stage.student.model, key="student.model")


def _key(stage: Stage) -> str:
    if stage.tokenizer is None:
        said = f"student {stage.student.model}"
    else:
        each = (stage.tokenizer, stage.tokenizer_data)
        said = " ".join(asked(one, "fingerprint", of=str) for one in each)
    return hashlib.sha256(said.encode()).hexdigest()


def _key_of(folder: Path) -> str | None:
    path = folder / _KEY
    return path.read_text() if path.exists() else None
