"""The teacher `cached`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from kdcore import (
    Batch,
    Run,
    RunError,
    Split,
    Stage,
    Teacher,
    TeacherOutputs,
    UsageError,
    component,
    describe,
    load_teacher,
    read_nll,
    reads_columns,
    tokenizer_hash,
)
from kdcore_cached.buckets import Buckets, TopK
from kdcore_cached.catalogue import Kept, kind_of, stores_in
from kdcore_cached.kinds import Kind
from kdcore_cached.others import TOKENS, mass_of_known, temperatures_of, too_little
from kdcore_cached.places import sent
from kdcore_cached.store import Store, as_text, key_of
from kdcore_cached.windows import Windows, length_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger("kdcore")

_LAYOUT = ("block", "rows", "cut", "eos")  # of the data: what decides a token's context
_BELONGS = {"k": "topk", "draws": "sampled", "seed": "sampled"}  # options that belong to a kind
_IDS, _DRAWS = 32, 32


@component
class CachedTeacher(Teacher):
    """Another teacher, cached: outputs are computed once, then read from disk.

    The wrapped teacher is loaded only if something is missing. Stores are shared between runs, in
    `caches/` next to the run folders. With kind "topk", the mass of all other ids is stored at each
    temperature that the recipe's losses use.
    """

    name = "cached"
    loads_members = True
    teacher: Annotated[Teacher, Field(description="whose answers are stored")]
    kind: Annotated[
        Literal["nll", "topk", "sampled"],
        Field(
            description="nll: the loss of each token, for selections; topk: its likeliest ids and "
            "the mass of all others; sampled: ids drawn from it, for losses linear in it"
        ),
    ] = "nll"
    k: Annotated[
        int | None, Field(ge=1, description=f"ids of each token; of kind topk, {_IDS}")
    ] = None
    draws: Annotated[
        int | None, Field(ge=1, le=255, description=f"for each token; of kind sampled, {_DRAWS}")
    ] = None
    seed: Annotated[int | None, Field(ge=0, description="of the draws; of kind sampled, 0")] = None
    context: Annotated[
        Literal["row", "document"],
        Field(description="what the teacher sees: the run's rows, or whole documents"),
    ] = "row"
    window: Annotated[
        int | None,
        Field(ge=2, description="tokens of a document at once: the teacher's own length"),
    ] = None

    def __post_init__(self) -> None:
        for key, kind in _BELONGS.items():
            if getattr(self, key) is not None and self.kind != kind:
                raise UsageError(f'{key} is an option of kind = "{kind}", not of "{self.kind}"')
        if self.window is not None and self.context != "document":
            raise UsageError('window requires context = "document"')

    def faults(self, recipe: Stage) -> Iterable[str]:
        """Reject rows that change each epoch, and teachers that know too little."""
        if self.context == "row" and recipe.data.fresh_each_epoch:
            yield (
                f"data {recipe.data.name!r} makes new rows each epoch, which stored answers do "
                'not fit; with context = "document" the teacher sees whole documents'
            )
        if recipe.rollout is not None and self.kind == "sampled":
            yield (
                'kind = "sampled" stores draws for the data\'s rows, but with [rollout] the '
                f'teacher reads new ones: use kind = "topk", or {self.teacher.name!r} itself'
            )
        if recipe.rollout is not None and self.teacher.is_sharded():
            yield (
                f"the processes of a run read {self.teacher.name!r} together, and with [rollout] "
                'each would ask it at another time: leave cached out, or shard = "full"'
            )
        if recipe.data.streams:
            yield f"data {recipe.data.name!r} is streamed, so it cannot be cached"
        if self.context == "document" and self._columns():
            names = ", ".join(sorted(self._columns()))
            yield (
                f"the teacher {self.teacher.name!r} uses columns ({names}), which windows over "
                'whole documents do not have: take context = "row", or wrap its members instead'
            )
        yield from self._too_little()

    def _too_little(self) -> Iterable[str]:
        """What the wrapped teacher would have to give for this kind, and does not."""
        if self.teacher.gives_parts() and self.kind != "nll":
            yield (
                f"the teacher {self.teacher.name!r} averages losses over its members, but a store "
                "holds one distribution: cache each of its members instead"
            )
        wrapped, few = self.teacher, self.teacher.ids_known()
        some_ids = wrapped.gives_logits() and not wrapped.is_estimate()
        able = {
            "nll": wrapped.gives_losses() and wrapped.knows_all(),
            "topk": some_ids,
            "sampled": some_ids and few is None,
        }
        if not able[self.kind]:
            needed = "the loss of every token" if self.kind == "nll" else "the logits of all ids"
            yield f'kind = "{self.kind}" needs {needed}, and {wrapped.name!r} has them not'
        elif few and self.k is not None and self.k > few:
            yield f"k = {self.k} is more than the {few} ids that {wrapped.name!r} knows"

    def load(self, run: Run) -> None:
        """Compute what identifies the stores; the wrapped teacher is not loaded."""
        self._run, self._is_loaded = run, False
        self._stores: dict[str, Store] = {}
        self._temperatures = temperatures_of(run.recipe) if self._tempers() else []
        self._shares: list[np.ndarray] = []  # of all others at these, for the first tokens
        self._is_looked_at = not self._temperatures
        self._bound: dict[str, object] = {
            "teacher": self.teacher.fingerprint(),
            "device": run.device.type,  # the type of a teacher with dtype "auto" depends on it
            "tokenizer": tokenizer_hash(run.tokenizer),
            "context": self.context,
        }
        if self.context == "row":
            self._bound["layout"] = {key: getattr(run.data, key) for key in _LAYOUT}
        else:
            self._length = self.window or length_of(self.teacher, run.device)
            self._bound |= {"window": self._length, "isolated": run.data.rows != "chunk"}

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The wrapped teacher's."""
        return self.teacher.tokenizer()

    def gives_logits(self) -> bool:
        """Losses only, or some ids."""
        return self.kind != "nll"

    def ids_known(self) -> int | None:
        """The stored ones."""
        return {"nll": None, "topk": self._ids(), "sampled": self.draws or _DRAWS}[self.kind]

    def _ids(self) -> int:
        """The number stored per token: k, or fewer if the teacher knows fewer."""
        few = self.teacher.ids_known()
        return self.k or (min(few, _IDS) if few else _IDS)

    def _tempers(self) -> bool:
        """Whether the others' mass at other temperatures can be computed."""
        return self.kind == "topk" and self.teacher.ids_known() is None

    def knows_all(self) -> bool:
        """As the wrapped teacher."""
        return self.teacher.knows_all()

    def known(self, batch: Batch) -> Tensor | None:
        """The tokens with stored ids; missing ones are computed and stored first."""
        if self.teacher.knows_all():
            return None
        ids = self.stored(batch)[0]
        return sent(ids[:, 0] >= 0, batch.valid.device)

    def knows_others_at(self, temperature: float) -> bool:
        """Sampled ids have no share at other temperatures."""
        return temperature == 1 or self._tempers()

    def warnings(self, recipe: Stage, caches: Path) -> Iterable[str]:
        """Temperatures at which the stored ids of this teacher have little mass."""
        asked = temperatures_of(recipe)
        k = self._ids()
        stores = [one for one in stores_in(caches) if self.kind == "topk" and not one.error()]
        known = [one for one in stores if one.meta.get("k") == k and one.masses()]
        mine = self.teacher.fingerprint() if asked and known else None
        for store in known:
            if store.meta["teacher"] == mine:
                masses = {at: mass for at, mass in store.masses().items() if at in asked}
                yield from too_little(k, masses, store.wanted())
                return

    def is_estimate(self) -> bool:
        """Whether ids are sampled."""
        return self.kind == "sampled"

    def bytes_per_token(self) -> float:
        """As the kind."""
        return self.kind_for().bytes_per_token

    def nll(self, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
        """The batch's stored losses; missing ones are computed and stored first."""
        if self.kind != "nll":
            return super().nll(batch)
        if batch.split.written:
            return read_nll(self._wrapped("rows are written while training"), batch)
        (found,) = self.stored(batch)
        values = torch.full((batch.labels.numel(),), torch.nan, device=batch.labels.device)
        values[batch.valid] = sent(found, values.device)
        return lambda positions, labels: values[positions]

    def read(self, batch: Batch) -> TeacherOutputs:
        """The batch's stored ids and masses; missing ones are computed and stored first."""
        device = batch.valid.device
        place = torch.empty(batch.labels.numel(), dtype=torch.int64, device=device)
        place[batch.valid] = torch.arange(len(batch.valid), device=device)
        if batch.split.written:
            return self._read_live(batch, place)
        store, slots = self.store(batch), self.complete(batch)
        kind = store.kind
        assert isinstance(kind, Buckets), "a teacher that gives no logits is not read"
        if device.type == "cpu":
            return lambda positions: kind.coarse(store.take(slots[place[positions].numpy()]))
        # On a GPU the whole batch is copied at once: a copy per chunk would synchronise.
        taken = kind.needed(store.take(slots))
        whole = [sent(each, device) for each in taken]
        return lambda positions: kind.sparse_logits([each[place[positions]] for each in whole])

    def _read_live(self, batch: Batch, place: Tensor) -> TeacherOutputs:
        """The wrapped teacher's output in the form of this kind, for rows that are seen once."""
        kind = self.kind_for(batch.vocabulary)
        assert isinstance(kind, Buckets), "a teacher that gives no logits is not read"
        live = kind.scored(self._wrapped("rows are written while training"), batch)
        whole = [sent(each, place.device) for each in kind.needed(live)]
        return lambda positions: kind.sparse_logits([each[place[positions]] for each in whole])

    def stored(self, batch: Batch) -> list[np.ndarray]:
        """The arrays' values at valid positions; missing ones are computed and stored first."""
        return self.store(batch).take(self.complete(batch))

    def complete(self, batch: Batch) -> np.ndarray:
        """The slots that the batch's valid positions predict, all of them filled [valid]."""
        store = self.store(batch)
        slots = store.slots(batch)
        if self._run.data.fresh_each_epoch:
            self._check_texts(batch, slots)
        missing = store.missing(slots)
        if self._most(int(missing.any())):
            self._load_wrapped(store)
            for some, where in self._filled(batch, self._shown(batch, slots, missing)):
                store.put(where, store.kind.scored(self.teacher, some))
        if not self._is_looked_at:
            self._look_at(store, slots)
        return slots

    def _most(self, count: int) -> int:
        """Of all processes, where these run the wrapped teacher together."""
        return self._run.most(count) if self.teacher.is_sharded() else count

    def _filled(
        self, batch: Batch, shown: Iterable[tuple[Batch, np.ndarray]]
    ) -> Iterable[tuple[Batch, np.ndarray]]:
        """With batches of no valid tokens, where other processes show the teacher more."""
        if not (self.teacher.is_sharded() and self._run.shares_calls):
            return shown
        mine = list(shown)
        none = (replace(batch, valid=batch.valid[:0]), np.zeros(0, np.int64))
        return [*mine, *[none] * (self._most(len(mine)) - len(mine))]

    def _look_at(self, store: Store, slots: np.ndarray) -> None:
        """Warn once about ids with little mass, as soon as enough tokens are stored."""
        self._shares.append(np.stack(store.take(slots)[len(store.kind.arrays) :]))
        if sum(some.shape[1] for some in self._shares) < min(TOKENS, store.tokens // 2):
            return
        self._is_looked_at = True
        shares = np.concatenate(self._shares, axis=1)[:, :TOKENS]
        self._shares.clear()
        each = zip(self._temperatures, shares, strict=True)
        kind, kept = store.kind, Kept(store.folder)
        assert isinstance(kind, TopK), "others have no temperatures"
        if kind.wanted and self._run.main:
            kept.tell(wanted={str(at): k for at, k in kind.wanted.items()})
        masses = {at: mass_of_known(some) for at, some in each}
        for said in too_little(kind.k, masses, kept.wanted() | kind.wanted):
            _log.warning("%s", said)

    def store(self, batch: Batch) -> Store:
        """The store of the batch's split, opened once."""
        split = batch.split
        if split.fingerprint not in self._stores:
            if not len(split.lengths):
                raise RunError(f"the {split.name} data is streamed, so it cannot be cached")
            self._stores[split.fingerprint] = Store(
                self.folder(split, batch.vocabulary),
                self._meta(split, batch.vocabulary),
                split,
                self.kind_for(batch.vocabulary),
                self._run.say,
                {"teacher": describe(self.teacher), "data": describe(self._run.data)},
            )
        return self._stores[split.fingerprint]

    def folder(self, split: Split, vocabulary: int) -> Path:
        """Where the store of a split is, or would be; its name is a hash of what identifies it."""
        key = key_of(as_text(self._meta(split, vocabulary)))
        return self._run.caches / f"{self.teacher.name}-{split.name}-{key}"

    def _meta(self, split: Split, vocabulary: int) -> dict[str, object]:
        kind = self.kind_for(vocabulary)
        bound = {"kind": kind.name, "split": split.name, "data": split.fingerprint}
        if columns := self._columns():
            bound["columns"] = self._run.columns_fingerprint(split.name, columns)
        return bound | {"vocabulary": vocabulary} | self._bound | kind.bound()

    def _columns(self) -> set[str]:
        """The columns that the wrapped teacher depends on."""
        run: Run | None = getattr(self, "_run", None)  # not set before `load`
        there = (run and run.data.column_names()) or ()
        return {name for each in reads_columns(self.teacher, there) for name in each}

    def live(self, batch: Batch) -> list[tuple[Batch, Sequence[np.ndarray]]]:
        """The wrapped teacher's own output for the batch, ignoring what is stored."""
        store = self.store(batch)
        self._load_wrapped(store)
        slots = store.slots(batch)
        shown = self._shown(batch, slots, np.ones(len(slots), bool))
        return [(some, store.kind.scored(self.teacher, some)) for some, _ in shown]

    def kind_for(self, vocabulary: int = 1 << 31) -> Kind:
        """What is stored per token, for a vocabulary of this size."""
        known = {"k": self._ids(), "draws": self.draws or _DRAWS, "seed": self.seed or 0}
        temperatures = getattr(self, "_temperatures", ())  # not set before `load`
        made = kind_of({"kind": self.kind, "vocabulary": vocabulary, **known}, temperatures)
        if isinstance(made, TopK):
            made.gaps = self.teacher.ids_known() is not None
        return made

    def _shown(
        self, batch: Batch, slots: np.ndarray, missing: np.ndarray
    ) -> Iterable[tuple[Batch, np.ndarray]]:
        """The teacher's input for the missing tokens, and the slots that its output fills."""
        if self.context == "row":
            chosen = sent(np.flatnonzero(missing), batch.valid.device)
            return [(replace(batch, valid=batch.valid[chosen]), slots[missing])]
        self._check_texts(batch, slots)
        isolated = self._run.data.rows != "chunk"
        windows = Windows(batch.split, self._length, isolated=isolated)
        name = batch.split.name
        made = windows.batches(
            windows.over(slots[missing]), batch, lambda places: self._run.ids(name, places)
        )
        store = self.store(batch)
        return ((some, store.slots(some)) for some in made)

    def _check_texts(self, batch: Batch, slots: np.ndarray) -> None:
        """Reject documents that differ between epochs, and labels that are not the next tokens."""
        labels = batch.labels[batch.valid].cpu().numpy()
        if not np.array_equal(self._run.ids(batch.split.name, slots), labels):
            raise RunError(
                f"data {self._run.data.name!r} trains on tokens that its documents do not have, "
                "so they cannot be cached; name the wrapped teacher instead of the cached one"
            )

    def _load_wrapped(self, store: Store) -> None:
        self._wrapped(f"{store.folder} is not complete")

    def _wrapped(self, why: str) -> Teacher:
        """The wrapped teacher, loaded at the first call."""
        if not self._is_loaded:
            self._run.say(f"{why}: loading {self.teacher.name!r}")
            load_teacher(self._run, self.teacher)
            self._is_loaded = True
        return self.teacher
