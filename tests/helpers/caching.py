"""Cached teachers as their tests drive them: documents cut in pieces, a teacher that is watched."""

from types import SimpleNamespace

import numpy as np
import tiny
from kdcore_cached import CachedTeacher
from kdcore_hf import HfTeacher

from kdcore import Data, component, read_nll

LENGTHS = (7, 20, 9, 4)
# The second document is cut in three pieces.
ROWS = [[(0, 0, 7)], [(1, 0, 8)], [(1, 8, 16)], [(1, 16, 20), (3, 0, 4)], [(2, 0, 9)]]


OWN = ("kind", "k", "draws", "seed", "context", "window")


@component
class Texts(Data):
    """What the documents are of."""

    name = "texts"


class Spy(HfTeacher):
    """Counts what it is asked for."""

    def load(self, run):
        self.loads = getattr(self, "loads", 0) + 1
        self.batches = 0
        super().load(run)

    def read(self, batch):
        self.batches += 1
        return super().read(batch)


def run_in(folder, *losses, **data):
    """A run whose recipe has these losses."""
    said = []
    return SimpleNamespace(
        caches=folder / "caches",
        main=True,
        recipe=SimpleNamespace(components=lambda: losses),
        device=tiny.CPU,
        data=Texts(block=8, **data),
        tokenizer=tiny.byte_tokenizer(),
        say=said.append,
        said=said,
        ids=lambda split, places: np.concatenate(some_documents())[places],
    )


def cached(run, model, **options):
    own = {key: options.pop(key) for key in OWN if key in options}
    teacher = CachedTeacher(teacher=Spy(model=str(model), **options), **own)
    teacher.load(run)
    return teacher


def live(run, model):
    teacher = HfTeacher(model=str(model))
    teacher.load(run)
    return teacher


def some_documents(seed=0):
    return tiny.documents(LENGTHS, seed=seed)


def batches(sizes=(2, 1, 2), name="train", seed=0, device=tiny.CPU):
    some = some_documents(seed)
    split = tiny.split_of(some, name)
    start = 0
    for size in sizes:
        yield tiny.batch(some, ROWS[start : start + size], split=split, device=device)
        start += size


def values(teacher, batch):
    return read_nll(teacher, batch)(batch.valid, batch.labels[batch.valid])


def loads(teacher):
    return getattr(teacher.teacher, "loads", 0)
