"""A teacher whose answers are stored as they are first needed, for later epochs and runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdcore import (
    Batch,
    Run,
    RunError,
    Teacher,
    component,
    hookimpl,
    load_teacher,
    of_tokenizer,
)
from kdcore_cached.kinds import Kind, Losses
from kdcore_cached.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LAYOUT = ("block", "rows", "cut", "eos")  # of the data: what decides which context a token has


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
        self._stores: dict[str, Store] = {}
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
        """As its kind has it."""
        return self._kind().bytes_per_token

    def nll(self, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
        """The stored losses of the batch, scored and stored first where they are missing."""
        (found,) = self._stored(batch)
        values = torch.full((batch.labels.numel(),), torch.nan, device=batch.labels.device)
        values[batch.valid] = torch.from_numpy(found).to(values.device)
        return lambda positions, labels: values[positions]

    def _kind(self) -> Kind:
        return Losses()

    def _stored(self, batch: Batch) -> list[np.ndarray]:
        """What the arrays hold of the batch's valid positions, stored first where it is missing."""
        store = self._store(batch)
        slots = store.slots(batch)
        missing = store.missing(slots)
        if missing.any():
            self._load_wrapped(store)
            some = replace(
                batch, valid=batch.valid[torch.from_numpy(missing).to(batch.valid.device)]
            )
            store.put(slots[missing], store.kind.scored(self.teacher, some))
        return store.take(slots)

    def _store(self, batch: Batch) -> Store:
        """The store of the batch's split, opened once."""
        split = batch.split
        if split.fingerprint not in self._stores:
            if not len(split.lengths):
                raise RunError(f"the {split.name} data is streamed, and has no place to store at")
            kind = self._kind()
            bound = {"kind": kind.name, "split": split.name, "data": split.fingerprint}
            meta = bound | {"vocabulary": batch.vocabulary} | self._bound | kind.bound()
            prefix = f"{self.teacher.name}-{split.name}"
            store = Store(self._run.caches, prefix, meta, split, kind, self._run.say)
            self._stores[split.fingerprint] = store
        return self._stores[split.fingerprint]

    def _load_wrapped(self, store: Store) -> None:
        if not self._is_loaded:
            self._run.say(f"{store.folder} is not complete: loading {self.teacher.name!r}")
            load_teacher(self._run, self.teacher)
            self._is_loaded = True


@hookimpl
def kdcore_teachers() -> Sequence[type[Teacher]]:
    """The teacher `cached`."""
    return [CachedTeacher]
