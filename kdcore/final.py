"""`final/`: the student alone, as `from_pretrained` reads it, with tokenizer and model card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from kdcore.card import model_card
from kdcore.ends import add_ends, learned_ends
from kdcore.folders import FINAL, move_into_place
from kdcore.hub import progress_bars
from kdcore.language_model import LanguageModel
from kdcore.student import finished

if TYPE_CHECKING:
    from kdcore.run import Run


def finish_student(run: Run) -> None:
    """On every process, so that whoever asks the run afterwards asks the same student."""
    model = finished(run.student, run.recipe.student.patches)
    if model is not run.student:
        precision = run.language_model.precision
        run.language_model = LanguageModel(model)
        run.language_model.precision = precision


def save_final(run: Run) -> Path:
    """Write the finished student beside, then rename."""
    add_ends(run.student, learned_ends(run.rows("validation"), run.tokenizer))
    target, beside = run.folder / FINAL, run.folder / f".{FINAL}.partial"
    shutil.rmtree(beside, ignore_errors=True)
    with progress_bars(shown=False):
        run.student.save_pretrained(beside)
    run.tokenizer.save_pretrained(beside)
    (beside / "README.md").write_text(model_card(run))
    move_into_place(beside, target)
    return target
