"""A step whose numbers are not finite, looked at again row by row, and its rows kept for later."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kdcore.batch import Row
from kdcore.selecting import Choices, choose
from kdcore.tokens import Reading

if TYPE_CHECKING:
    from kdcore.options import Term
    from kdcore.train import Trainer

_FOLDER = "non_finite"
_SHOWN = 3  # rows that a message tells of
_LETTERS = 160  # of a row's text


@dataclass(frozen=True)
class BadRow:
    """A row that is not finite by itself."""

    place: int  # in the step, from 1
    document: int  # its first
    terms: Mapping[str, str]  # what is not finite of which term: "loss" or "gradient"
    text: str

    def __str__(self) -> str:
        what = ", ".join(f"{label}: {what}" for label, what in self.terms.items())
        return f"row {self.place} (document {self.document}; {what}): {self.text!r}"


def told(trainer: Trainer, step: int) -> str:
    """Which rows and terms of a step are not finite, in words; takes a forward for each row."""
    found = _bad_rows(trainer, step)
    rows = trainer.run.batch
    if not found:
        return f"no row of its {rows} is so by itself, but their sum is"
    labels = dict.fromkeys(label for row in found for label in row.terms)
    shown = "".join(f"\n    {row}" for row in found[:_SHOWN])
    more = f"\n    and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{', '.join(labels)} in {len(found)} of its {rows} rows:{shown}{more}"


def keep_rows(trainer: Trainer, step: int) -> Path:
    """Write this process's rows of a step where `saved_rows` reads them; the path."""
    from safetensors.numpy import save_file

    run = trainer.run
    folder = run.folder / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    own = f"-process-{run.process}" if run.processes > 1 else ""
    rows = trainer.rows.step(step)
    keys = {key for row in rows for key in row if row[key] is not None}
    arrays = {key: np.concatenate([_values(row, key) for row in rows]) for key in sorted(keys)}
    arrays["length"] = np.array([len(row["input_ids"]) for row in rows], np.int64)
    path = folder / f"step-{step}{own}.safetensors"
    save_file(arrays, path, {"step": str(step)})
    return path


def _values(row: Row, key: str) -> np.ndarray:
    """Labels that a row leaves out are its ids."""
    given = row.get(key)
    return np.asarray(row["input_ids"] if given is None else given, np.int64)


def saved_rows(path: str | Path) -> list[Row]:
    """The rows of a step that was not finite, from the file that the run wrote of it."""
    from safetensors.numpy import load_file

    arrays = load_file(path)
    borders = np.cumsum(arrays.pop("length"))[:-1]
    pieces = {key: np.split(array, borders) for key, array in arrays.items()}
    return [dict(zip(pieces, row, strict=True)) for row in zip(*pieces.values(), strict=True)]


def _bad_rows(trainer: Trainer, step: int) -> list[BadRow]:
    """Those of all processes."""
    run, rows, first = trainer.run, trainer.rows.step(step), trainer.rows.mine.start
    readings = [Reading(trainer.collate([row]), [first + n]) for n, row in enumerate(rows)]
    readings = readings or [Reading(trainer.collate([]), [first])]
    choices = choose(run, readings, step, trainer.gather, trainer.total)
    found = []
    for n, row in enumerate(rows):
        if bad := _bad_terms(trainer, readings[n], choices, n, step):
            text = str(run.tokenizer.decode(row["input_ids"]))[:_LETTERS]
            found.append(BadRow(first + n + 1, int(row["document"][0]), bad, text))
        readings[n].forget()
    if run.processes == 1:
        return found
    from accelerate.utils import gather_object

    gathered: list[BadRow] = gather_object(found)
    return gathered


def _bad_terms(
    trainer: Trainer, reading: Reading, choices: Choices, n: int, step: int
) -> dict[str, str]:
    """What is not finite of a row by itself: a term's loss, else its gradient."""
    terms = trainer.terms_of(step)
    losses = _attempt(trainer, reading, terms, choices, n)[0].tolist()
    bad = {
        term.label: "loss"
        for (term, _), loss in zip(terms, losses, strict=True)
        if not math.isfinite(loss)
    }
    if bad or trainer.accelerator.scaler is not None:
        return bad
    for each in terms:
        if not _attempt(trainer, reading, [each], choices, n)[1].isfinite():
            bad[each[0].label] = "gradient"
    return bad


def _attempt(
    trainer: Trainer,
    reading: Reading,
    terms: Sequence[tuple[Term, float]],
    choices: Choices,
    n: int,
) -> tuple[Tensor, Tensor]:
    """Forward and backward of a row: each term's share [terms], and the gradient's norm."""
    with trainer.accelerator.no_sync(trainer.wrapped):
        shares = trainer.backward(reading, terms, choices.each[n])
    norm = gradient_norm(trainer.objective)
    trainer.optimizer.zero_grad(set_to_none=True)
    return shares, norm


def gradient_norm(module: torch.nn.Module) -> Tensor:
    """Of all parameters' gradients together, without reading it."""
    return torch.nn.utils.get_total_norm(
        [p.grad for p in module.parameters() if p.grad is not None]
    )
