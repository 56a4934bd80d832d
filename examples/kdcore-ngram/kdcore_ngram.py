"""An n-gram teacher: an interpolated n-gram model of the training rows.

An example of a component with state: the counts are part of every checkpoint, so a resumed run
keeps its teacher.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from kdcore import Batch, LogitsFn, Run, Teacher, component, hookimpl

Context = tuple[int, ...]


@component
class Ngram(Teacher):
    """An interpolated n-gram model (MacKay and Peto 1995), down to a uniform distribution.

    P(w | context) = (count(context, w) + strength P(w | shorter context)) / (count(context) +
    strength)

    order: the number of tokens in a gram; its context has one fewer.
    strength: the weight of the shorter context, in counts.
    """

    name = "ngram"
    order: Annotated[int, Field(ge=1, le=8, description="tokens in a gram")] = 3
    strength: Annotated[float, Field(gt=0, description="of the shorter context")] = 2.0

    def load(self, run: Run) -> None:
        """Count the grams of the training rows; no gram crosses documents."""
        counts: dict[Context, Counter[int]] = defaultdict(Counter)
        for row in run.rows("train"):
            ids = [int(each) for each in row["input_ids"]]
            documents = [int(each) for each in row.get("document", [0] * len(ids))]
            for place in range(1, len(ids)):
                if documents[place] == documents[place - 1]:
                    for context in self._contexts(ids, documents, place - 1):
                        counts[context][ids[place]] += 1
        self._counts = {context: _as_tensors(found) for context, found in counts.items()}
        self._vocabulary = run.vocabulary

    def read(self, batch: Batch) -> LogitsFn:
        """Log-probabilities after the longest context that occurred."""
        ids, documents = batch.input_ids.tolist(), batch.document.tolist()
        time = batch.input_ids.shape[1]

        def logits(positions: Tensor) -> Tensor:
            found = [
                self._distribution([*self._contexts(ids[row], documents[row], place)][-1])
                for row, place in (divmod(int(each), time) for each in positions)
            ]
            empty = torch.empty(0, self._vocabulary)
            return (torch.stack(found).log() if found else empty).to(positions.device)

        return logits

    def state_dict(self) -> Mapping[str, Tensor | int | float | str | bytes]:
        """The grams [m, order], padded with -1 on the left, and their counts [m]."""
        grams, counts = list[list[int]](), list[float]()
        for context, (ids, found) in self._counts.items():
            padding = [-1] * (self.order - 1 - len(context))
            grams += [[*padding, *context, each] for each in ids.tolist()]
            counts += found.tolist()
        return {
            "grams": torch.tensor(grams, dtype=torch.int64).reshape(-1, self.order),
            "counts": torch.tensor(counts),
            "vocabulary": self._vocabulary,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the counts made by `load` with those of the checkpoint."""
        counts: dict[Context, Counter[int]] = defaultdict(Counter)
        for gram, count in zip(state["grams"].tolist(), state["counts"].tolist(), strict=True):
            context = tuple(each for each in gram[:-1] if each >= 0)
            counts[context][gram[-1]] = count
        self._counts = {context: _as_tensors(found) for context, found in counts.items()}
        self._vocabulary = int(state["vocabulary"])

    def _contexts(self, ids: Sequence[int], documents: Sequence[int], at: int) -> Iterator[Context]:
        """The contexts that end at a position, from none to the longest in its document."""
        yield ()
        for length in range(1, self.order):
            first = at - length + 1
            if first < 0 or documents[first] != documents[at]:
                return
            yield tuple(ids[first : at + 1])

    def _distribution(self, context: Context) -> Tensor:
        """Probabilities [V]."""
        if context:
            lower = self._distribution(context[1:])
        else:
            lower = torch.full((self._vocabulary,), 1 / self._vocabulary)
        if context not in self._counts:
            return lower
        ids, counts = self._counts[context]
        total = counts.sum() + self.strength
        return (lower * (self.strength / total)).index_add(0, ids, counts / total)


def _as_tensors(found: Counter[int]) -> tuple[Tensor, Tensor]:
    """Sorted grams, and the count of each."""
    ids = sorted(found)
    return torch.tensor(ids), torch.tensor([float(found[each]) for each in ids])


@hookimpl
def kdcore_teachers() -> Sequence[type[Teacher]]:
    """`[teacher] use = "ngram"`."""
    return [Ngram]
