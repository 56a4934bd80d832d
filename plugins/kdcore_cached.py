"""A teacher whose answers are stored as they are first needed, for later epochs and runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from uuid import uuid4

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdcore import (
    Batch,
    Run,
    RunError,
    Split,
    Teacher,
    component,
    hookimpl,
    load_teacher,
    of_tokenizer,
    read_nll,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LAYOUT = ("block", "rows", "cut", "eos")  # of the data: what decides which context a token has
_FILL = 1 << 20  # values written at a time when a file is made


@component
class CachedTeacher(Teacher):
    """Another teacher, written down: what was asked once is read from disk from then on.

    The wrapped teacher is loaded only when something is missing. Runs share the stores, which lie
    beside them in `caches/`.
    """

    name = "cached"
    loads_members = True
    teacher: Annotated[Teacher, Field(description="whose answers are stored")]
    kind: Annotated[
        Literal["nll"],
        Field(description="the loss of each trained token: for selections, not for logits"),
    ] = "nll"
    context: Annotated[
        Literal["row"], Field(description="what the teacher sees: just the run's rows")
    ] = "row"

    def load(self, run: Run) -> None:
        """Find out what the stores are bound to; the wrapped teacher stays where it is."""
        if run.data.fresh_each_epoch:
            raise RunError(
                f"data {run.data.name!r} lays other rows each epoch, so a stored loss would be "
                "that of another row; name the wrapped teacher itself instead of the cached one"
            )
        self._run, self._is_loaded = run, False
        self._stores: dict[str, _Store] = {}
        self._bound: dict[str, object] = {
            "teacher": self.teacher.fingerprint(),
            "device": run.device.type,  # a teacher's "auto" types go by it
            "tokenizer": of_tokenizer(run.tokenizer),
            "context": self.context,
            "layout": {key: getattr(run.data, key) for key in _LAYOUT},
        }

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The wrapped teacher's."""
        return self.teacher.tokenizer()

    def gives_logits(self) -> bool:
        """Losses only."""
        return False

    def bytes_per_token(self) -> float:
        """A float32 for each."""
        return 4

    def nll(self, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
        """The stored losses of the batch, scored and stored first where they are missing."""
        store = self._store(batch)
        slots = store.slots(batch)
        found = store.losses[slots]
        missing = np.isnan(found)
        if missing.any():
            found[missing] = self._scored(batch, store)[missing]
            store.losses[slots[missing]] = found[missing]
        values = torch.full((batch.labels.numel(),), torch.nan, device=batch.labels.device)
        values[batch.valid] = torch.from_numpy(found).to(values.device)
        return lambda positions, labels: values[positions]

    def _store(self, batch: Batch) -> _Store:
        """The store of the batch's split, opened once."""
        split = batch.split
        if split.fingerprint not in self._stores:
            if not len(split.lengths):
                raise RunError(f"the {split.name} data is streamed, and has no place to store at")
            bound = {"kind": self.kind, "split": split.name, "data": split.fingerprint}
            meta = bound | {"vocabulary": batch.vocabulary} | self._bound
            prefix = f"{self.teacher.name}-{split.name}"
            store = _Store(self._run.caches, prefix, meta, split, self._run.say)
            self._stores[split.fingerprint] = store
        return self._stores[split.fingerprint]

    def _scored(self, batch: Batch, store: _Store) -> np.ndarray:
        """What the wrapped teacher says of every valid token of the batch [valid]."""
        if not self._is_loaded:
            self._run.say(f"{store.folder} is not complete: loading {self.teacher.name!r}")
            load_teacher(self._run, self.teacher)
            self._is_loaded = True
        values = read_nll(self.teacher, batch)(batch.valid, batch.labels[batch.valid])
        scored: np.ndarray = values.float().cpu().numpy()
        return scored


class _Store:
    """A folder with `meta.json`, which says what the values are of, and a flat file of float32.

    A token's slot is its document's start and its index there; NaN means missing. Its name is a
    hash of what it is bound to, so nothing else can be read from it. Several processes and runs
    may write at once: a slot is written whole, and all write the same.
    """

    def __init__(
        self,
        caches: Path,
        prefix: str,
        meta: Mapping[str, object],
        split: Split,
        say: Callable[[str], None],
    ) -> None:
        self._starts = np.concatenate([[0], np.cumsum(split.lengths, dtype=np.int64)])
        self._meta = json.dumps(dict(meta), sort_keys=True, indent=1)
        key = blake2b(self._meta.encode(), digest_size=6).hexdigest()
        self.folder = caches / f"{prefix}-{key}"
        if self.folder.exists() and not self._is_whole():
            say(f"{self.folder} is damaged: it is made anew")
            _remove(self.folder)
        if not self.folder.exists():
            self._make()
        self.losses = np.memmap(self.folder / "nll.f32", np.float32, "r+")

    def slots(self, batch: Batch) -> np.ndarray:
        """Where the tokens that the batch's valid positions predict are stored [valid]."""
        # The predicted token is the next one in the row.
        places = torch.stack([batch.document.flatten(), batch.offset.flatten()])
        document, offset = places[:, batch.valid + 1].cpu().numpy()
        slots: np.ndarray = self._starts[document] + offset
        return slots

    def _is_whole(self) -> bool:
        values, meta = self.folder / "nll.f32", self.folder / "meta.json"
        return (
            values.is_file()
            and values.stat().st_size == 4 * self._starts[-1]
            and meta.is_file()
            and meta.read_text(encoding="utf-8") == self._meta
        )

    def _make(self) -> None:
        """Everything missing, in one move: no process ever sees half a store."""
        beside = self.folder.with_name(f".{self.folder.name}-{uuid4().hex}")
        beside.mkdir(parents=True)
        (beside / "meta.json").write_text(self._meta, encoding="utf-8")
        with (beside / "nll.f32").open("wb") as file:
            for start in range(0, int(self._starts[-1]), _FILL):
                count = min(_FILL, int(self._starts[-1]) - start)
                file.write(np.full(count, np.nan, np.float32).tobytes())
            file.flush()
            os.fsync(file.fileno())
        try:
            beside.rename(self.folder)
        except OSError:
            shutil.rmtree(beside)
            if not self.folder.exists():  # else another process was faster
                raise


def _remove(folder: Path) -> None:
    """Out of the way at once, also where another process does the same."""
    aside = folder.with_name(f".{folder.name}-{uuid4().hex}")
    with suppress(FileNotFoundError):
        folder.rename(aside)
        shutil.rmtree(aside)


@hookimpl
def kdcore_teachers() -> Sequence[type[Teacher]]:
    """The teacher `cached`."""
    return [CachedTeacher]
