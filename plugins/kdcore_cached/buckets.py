"""Some ids of each token with their masses, plus the mass of all others: top-k or sampled."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from kdcore import Batch, GappedLogits, SparseLogits, Teacher, read, read_outputs
from kdcore_cached.drawing import drawn
from kdcore_cached.kinds import Array, Kind
from kdcore_cached.others import (
    ENOUGH,
    ids_that_hold,
    log_share_of_others,
    logit_of_others,
    others_array,
)
from kdcore_cached.places import places

_LOGITS = 2**24  # logits computed at a time while filling a store
_HERE = "known.u1"
_LOOKED_AT = 256  # tokens used to estimate how many ids would hold enough mass


class Buckets(Kind):
    """Some ids of each token, with the mass of each and of all others together.

    The mark, a byte of 1 that is written last, says that a token is stored.
    """

    tolerance = 0.1

    def missing(self, marks: np.ndarray) -> np.ndarray:
        """A mark of 0."""
        found: np.ndarray = marks == 0
        return found

    @abstractmethod
    def log_masses(self, stored: Tensor) -> Tensor:
        """The stored masses as log-probabilities, the last that of all others [n, k + 1]."""

    def coarse(self, values: Sequence[np.ndarray]) -> SparseLogits:
        """The arrays of some tokens as a teacher's output."""
        return self.sparse_logits([torch.from_numpy(some) for some in self.needed(values)])

    def needed(self, values: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """The arrays that `sparse_logits` reads: all but the marks."""
        return [*values[:2], *values[len(self.arrays) :]]

    def sparse_logits(self, values: Sequence[Tensor]) -> SparseLogits:
        """The arrays of some tokens, on any device, as a teacher's output."""
        return SparseLogits(values[0].long(), self.log_masses(values[1]), {})

    def broken(self, values: Sequence[np.ndarray], vocabulary: int) -> np.ndarray:
        """Invalid or repeated ids, or masses that do not sum to 1."""
        ids, masses = (torch.from_numpy(some) for some in values[:2])
        logs = self.log_masses(masses)
        none = ((ids < -1) | (ids >= vocabulary)).any(-1)
        ordered = ids.sort(-1).values
        twice = ((ordered.diff(dim=-1) == 0) & (ordered[:, 1:] >= 0)).any(-1)
        off = ~((logs.exp().sum(-1) - 1).abs() < 1e-2)
        found: np.ndarray = (none | twice | off).numpy()
        return found

    def differs(self, stored: Sequence[np.ndarray], live: Sequence[np.ndarray]) -> np.ndarray:
        """Half the sum of the differences in mass, over the ids of either."""
        mine, theirs = self.coarse(stored), self.coarse(live)
        width = mine.ids.shape[1]
        p, q = mine.log_probabilities.exp(), theirs.log_probabilities.exp()
        same = mine.ids[:, :, None] == theirs.ids[:, None, :]
        counterpart = (same * q[:, None, :width]).sum(-1)
        apart = (p[:, :width] - counterpart).abs().sum(-1)
        apart += (q[:, :width] * ~same.any(1)).sum(-1) + (p[:, width] - q[:, width]).abs()
        found: np.ndarray = (apart / 2).numpy()
        return found


class TopK(Buckets):
    """The k likeliest ids, in order, with log-probabilities at temperature 1 as float16.

    Half precision rounds log p by a relative 2^-11, which changes a probability p by 2^-11 p |log
    p|, less than 0.0002 for every p. The gradient of the forward KL, q - p, has the same error.
    float32 would double the size for digits below the precision of a half-precision teacher.
    """

    name = "topk"

    def __init__(self, k: int, vocabulary: int, temperatures: Sequence[float] = ()) -> None:
        self.k = min(k, vocabulary - 1)
        self.temperatures = temperatures  # other than 1; the others' mass is stored at these too
        self.gaps = False  # whether ids may be missing: a teacher may know some tokens only
        self.wanted: dict[float, int] = {}  # temperature -> a sufficient k, if this one is not
        self.extras = [others_array(each) for each in temperatures]
        self.arrays = (
            Array("ids.i32", np.dtype(np.int32), self.k),
            Array("log_probabilities.f16", np.dtype(np.float16), self.k + 1),
            Array(_HERE, np.dtype(np.uint8)),
        )

    def bound(self) -> dict[str, object]:
        """The number of ids."""
        return {"k": self.k}

    def log_masses(self, stored: Tensor) -> Tensor:
        """Stored as they are."""
        return stored.float()

    def sparse_logits(self, values: Sequence[Tensor]) -> SparseLogits:
        """The output, including the others' logit at each temperature."""
        ids, logs, _ = super().sparse_logits(values[:2])
        if self.gaps:
            return GappedLogits(ids, logs)
        each = zip(self.temperatures, values[2:], strict=True)
        return SparseLogits(
            ids, logs, {at: logit_of_others(logs[:, :-1], some, at) for at, some in each}
        )

    def scored(self, teacher: Teacher, batch: Batch) -> Sequence[np.ndarray]:
        """The k likeliest, and the others' mass, summed because 1 - the rest would lose digits."""
        if teacher.ids_known() is not None:
            return self._of_few(teacher, batch)
        pieces = []
        for logits in _logits(teacher, batch):
            logs = logits.log_softmax(-1)
            found, ids = logs.topk(self.k)
            tempered = [log_share_of_others(logs, ids, at) for at in self.temperatures]
            self._look_for_more(logs, tempered)
            others = logs.scatter_(1, ids, -math.inf).logsumexp(-1, keepdim=True)
            pieces.append((ids.int(), torch.cat([found, others], -1).half(), *tempered))
        return _joined(pieces)

    def _of_few(self, teacher: Teacher, batch: Batch) -> Sequence[np.ndarray]:
        """The k likeliest of a teacher that knows only some ids; no ids where it knows none."""
        at, known = read_outputs(teacher, batch), teacher.known(batch)
        pieces = []
        size = max(1, _LOGITS // batch.vocabulary)
        for some in torch.split(torch.arange(len(batch.valid), device=batch.valid.device), size):
            said = at(batch.valid[some])
            assert isinstance(said, SparseLogits), "a teacher of some ids knows these only"
            logs, order = said.log_probabilities[:, :-1].sort(dim=-1, descending=True, stable=True)
            ids = said.ids.gather(1, order)[:, : self.k]
            rest = torch.cat([logs[:, self.k :], said.log_probabilities[:, -1:]], -1)
            values = torch.cat([logs[:, : self.k], rest.logsumexp(-1, keepdim=True)], -1)
            if known is not None:
                # Where the teacher knows no id, the bucket of all others has the whole mass.
                nothing = torch.full_like(values, -100.0).index_fill(
                    1, torch.tensor([self.k], device=values.device), 0.0
                )
                ids = ids.where(known[some][:, None], -1)
                values = values.where(known[some][:, None], nothing)
            pieces.append((ids.int(), values.half()))
        return _joined(pieces)

    def differs(self, stored: Sequence[np.ndarray], live: Sequence[np.ndarray]) -> np.ndarray:
        """Includes the differences of the others' shares at other temperatures."""
        found = super().differs(stored, live)
        marks = len(self.arrays)
        for mine, theirs in zip(stored[marks:], live[marks:], strict=True):
            apart = np.exp(mine.astype(np.float32)) - np.exp(theirs.astype(np.float32))
            found = np.maximum(found, np.abs(apart))
        return found

    def _look_for_more(self, logs: Tensor, tempered: Sequence[Tensor]) -> None:
        """Estimate how many ids would hold enough mass, at temperatures where the k ids do not."""
        for at, shares in zip(self.temperatures, tempered, strict=True):
            if at not in self.wanted and float((1 - shares.float().exp()).mean()) < ENOUGH:
                self.wanted[at] = ids_that_hold(ENOUGH, (logs[:_LOOKED_AT] / at).softmax(-1))


class Sampled(Buckets):
    """Ids sampled from the teacher's distribution, with counts: an unbiased estimate.

    Anshumann et al. 2025 (Sparse Logit Sampling), arXiv:2503.16870, with the proposal distribution
    at temperature 1. Another proposal would need importance weights, which a loss's softmax
    normalises to a sum of 1; that would bias the estimate.
    """

    name = "sampled"

    def __init__(self, draws: int, seed: int, vocabulary: int) -> None:
        self.draws, self.seed = draws, seed
        self.width = min(draws, vocabulary - 1)
        self.arrays = (
            Array("ids.i32", np.dtype(np.int32), self.width),
            Array("counts.u1", np.dtype(np.uint8), self.width),
            Array(_HERE, np.dtype(np.uint8)),
        )

    def bound(self) -> dict[str, object]:
        """The options that determine the samples."""
        return {"draws": self.draws, "seed": self.seed}

    def log_masses(self, stored: Tensor) -> Tensor:
        """Counts divided by draws. If the arrays hold all ids but one, that id has the rest."""
        counts = stored.float()
        others = self.draws - counts.sum(-1, keepdim=True)
        return (torch.cat([counts, others], -1) / self.draws).log()

    def broken(self, values: Sequence[np.ndarray], vocabulary: int) -> np.ndarray:
        """Includes missing draws."""
        missing = values[1].sum(-1, dtype=np.int64) != self.draws
        found = super().broken(values, vocabulary)
        return found if self.width == vocabulary - 1 else found | missing

    def scored(self, teacher: Teacher, batch: Batch) -> Sequence[np.ndarray]:
        """Draw ids for each token, depending only on the seed and its place in the text."""
        document, offset = places(batch)
        pieces, at = [], 0
        for logits in _logits(teacher, batch):
            some = slice(at, at + len(logits))
            at = some.stop
            ids = drawn(logits, self.seed, document[some], offset[some], self.draws)
            pieces.append(self._counted(ids, logits.shape[1]))
        return _joined(pieces)

    def _counted(self, ids: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
        """Each id once, the most frequent first, padded with ids that were never drawn."""
        ones = torch.ones_like(ids)
        counts = torch.zeros(len(ids), vocabulary, dtype=torch.int64, device=ids.device)
        counts.scatter_add_(1, ids, ones)
        # Ties go to the smaller id: stored values must not depend on a device's sort order.
        ranks = counts * vocabulary - torch.arange(vocabulary, device=ids.device)
        chosen = ranks.topk(self.width).indices
        return chosen.int(), counts.gather(1, chosen).to(torch.uint8)


def _logits(teacher: Teacher, batch: Batch) -> Iterator[Tensor]:
    """The teacher's logits at the batch's valid positions, in chunks."""
    at = read(teacher, batch)
    for some in torch.split(batch.valid, max(1, _LOGITS // batch.vocabulary)):
        yield at(some)


def _joined(pieces: Sequence[tuple[Tensor, ...]]) -> Sequence[np.ndarray]:
    """The arrays in order: ids, values, marks, and any extra files."""
    ids, values, *more = (torch.cat(some).cpu().numpy() for some in zip(*pieces, strict=True))
    return ids, values, np.ones(len(ids), np.uint8), *more
