"""Some ids of each token with their masses, and that of all others: the likeliest, or draws."""

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

_LOGITS = 2**24  # made at a time to find out what is stored
_HERE = "known.u1"
_LOOKED_AT = 256  # tokens, to find out how many ids would hold enough


class Buckets(Kind):
    """Some ids of each token, and the masses of each and of all others together.

    A byte of 1, written last, marks what is there.
    """

    tolerance = 0.1

    def missing(self, marks: np.ndarray) -> np.ndarray:
        """A mark of 0."""
        found: np.ndarray = marks == 0
        return found

    @abstractmethod
    def log_masses(self, stored: Tensor) -> Tensor:
        """What is stored of each id, as log-probabilities with that of all others [n, k + 1]."""

    def coarse(self, values: Sequence[np.ndarray]) -> SparseLogits:
        """What the arrays hold of some tokens, as a teacher tells it."""
        return self.told([torch.from_numpy(some) for some in self.needed(values)])

    def needed(self, values: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Those that `told` asks for: all but the marks."""
        return [*values[:2], *values[len(self.arrays) :]]

    def told(self, values: Sequence[Tensor]) -> SparseLogits:
        """What the arrays hold of some tokens, wherever it was moved to."""
        return SparseLogits(values[0].long(), self.log_masses(values[1]), {})

    def broken(self, values: Sequence[np.ndarray], vocabulary: int) -> np.ndarray:
        """Ids that are none, or twice there, or masses that are not 1 together."""
        ids, masses = (torch.from_numpy(some) for some in values[:2])
        logs = self.log_masses(masses)
        none = ((ids < -1) | (ids >= vocabulary)).any(-1)
        ordered = ids.sort(-1).values
        twice = ((ordered.diff(dim=-1) == 0) & (ordered[:, 1:] >= 0)).any(-1)
        off = ~((logs.exp().sum(-1) - 1).abs() < 1e-2)
        found: np.ndarray = (none | twice | off).numpy()
        return found

    def differs(self, stored: Sequence[np.ndarray], live: Sequence[np.ndarray]) -> np.ndarray:
        """Half the sum of what masses differ by, over the ids that either knows."""
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
    """The k likeliest ids, the likeliest first, and log-probabilities at temperature 1 as float16.

    Half precision rounds log p by at most 2^-11 of itself, so a probability p by 2^-11 p |log p|,
    which is below 0.0002 for every p. The gradient of the forward KL, q - p, is wrong by no more.
    Double the bytes would buy digits below what a half-precision teacher says itself.
    """

    name = "topk"

    def __init__(self, k: int, vocabulary: int, temperatures: Sequence[float] = ()) -> None:
        self.k = min(k, vocabulary - 1)
        self.temperatures = temperatures  # at which the others' mass is stored too, none of them 1
        self.gaps = False  # whether some ids are none, as of a teacher that knows some tokens only
        self.wanted: dict[float, int] = {}  # temperature -> k that would hold enough, if k does not
        self.beside = [others_array(each) for each in temperatures]
        self.arrays = (
            Array("ids.i32", np.dtype(np.int32), self.k),
            Array("log_probabilities.f16", np.dtype(np.float16), self.k + 1),
            Array(_HERE, np.dtype(np.uint8)),
        )

    def bound(self) -> dict[str, object]:
        """How many ids."""
        return {"k": self.k}

    def log_masses(self, stored: Tensor) -> Tensor:
        """As they are."""
        return stored.float()

    def told(self, values: Sequence[Tensor]) -> SparseLogits:
        """Also the others' logits at each temperature, beside which the ids' have theirs."""
        ids, logs, _ = super().told(values[:2])
        if self.gaps:
            return GappedLogits(ids, logs)
        each = zip(self.temperatures, values[2:], strict=True)
        return SparseLogits(
            ids, logs, {at: logit_of_others(logs[:, :-1], some, at) for at, some in each}
        )

    def scored(self, teacher: Teacher, batch: Batch) -> Sequence[np.ndarray]:
        """The k likeliest, and what is left of the others: summed, not subtracted from 1."""
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
        """The k likeliest of a teacher that knows some ids; where it knows nothing, no id."""
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
                nothing = torch.full_like(values, -100.0).index_fill(
                    1, torch.tensor([self.k], device=values.device), 0.0
                )
                ids = ids.where(known[some][:, None], -1)
                values = values.where(known[some][:, None], nothing)
            pieces.append((ids.int(), values.half()))
        return _joined(pieces)

    def differs(self, stored: Sequence[np.ndarray], live: Sequence[np.ndarray]) -> np.ndarray:
        """Also what the others' shares at other temperatures differ by."""
        found = super().differs(stored, live)
        marks = len(self.arrays)
        for mine, theirs in zip(stored[marks:], live[marks:], strict=True):
            apart = np.exp(mine.astype(np.float32)) - np.exp(theirs.astype(np.float32))
            found = np.maximum(found, np.abs(apart))
        return found

    def _look_for_more(self, logs: Tensor, tempered: Sequence[Tensor]) -> None:
        """How many ids would hold enough at a temperature, where those that are stored do not."""
        for at, shares in zip(self.temperatures, tempered, strict=True):
            if at not in self.wanted and float((1 - shares.float().exp()).mean()) < ENOUGH:
                self.wanted[at] = ids_that_hold(ENOUGH, (logs[:_LOOKED_AT] / at).softmax(-1))


class Sampled(Buckets):
    """Ids drawn from the teacher's distribution, and how often each was: an unbiased estimate.

    Anshumann et al. 2025 (Sparse Logit Sampling), arXiv:2503.16870, with proposals at temperature
    1. Others would need weights that a loss's softmax would bring to a sum of 1, which is biased.
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
        """What decides what is drawn."""
        return {"draws": self.draws, "seed": self.seed}

    def log_masses(self, stored: Tensor) -> Tensor:
        """Shares of the draws. Where the arrays hold all ids but one, that has the rest."""
        counts = stored.float()
        others = self.draws - counts.sum(-1, keepdim=True)
        return (torch.cat([counts, others], -1) / self.draws).log()

    def broken(self, values: Sequence[np.ndarray], vocabulary: int) -> np.ndarray:
        """Also where draws are missing."""
        missing = values[1].sum(-1, dtype=np.int64) != self.draws
        found = super().broken(values, vocabulary)
        return found if self.width == vocabulary - 1 else found | missing

    def scored(self, teacher: Teacher, batch: Batch) -> Sequence[np.ndarray]:
        """The draws of each token hang on the seed and its place in the text only."""
        document, offset = places(batch)
        pieces, at = [], 0
        for logits in _logits(teacher, batch):
            some = slice(at, at + len(logits))
            at = some.stop
            ids = drawn(logits, self.seed, document[some], offset[some], self.draws)
            pieces.append(self._counted(ids, logits.shape[1]))
        return _joined(pieces)

    def _counted(self, ids: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
        """Each id once, the most frequent first; filled up with ids that were never drawn."""
        ones = torch.ones_like(ids)
        counts = torch.zeros(len(ids), vocabulary, dtype=torch.int64, device=ids.device)
        counts.scatter_add_(1, ids, ones)
        # Of equal counts the smaller id: what is stored must not hang on how a device sorts.
        ranks = counts * vocabulary - torch.arange(vocabulary, device=ids.device)
        chosen = ranks.topk(self.width).indices
        return chosen.int(), counts.gather(1, chosen).to(torch.uint8)


def _logits(teacher: Teacher, batch: Batch) -> Iterator[Tensor]:
    """The teacher's logits at the batch's valid positions, some at a time."""
    at = read(teacher, batch)
    for some in torch.split(batch.valid, max(1, _LOGITS // batch.vocabulary)):
        yield at(some)


def _joined(pieces: Sequence[tuple[Tensor, ...]]) -> Sequence[np.ndarray]:
    """Ids, what is stored of them, the marks that they are there, and what lies beside."""
    ids, values, *more = (torch.cat(some).cpu().numpy() for some in zip(*pieces, strict=True))
    return ids, values, np.ones(len(ids), np.uint8), *more
