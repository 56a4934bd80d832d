"""What can be stored of a teacher at each token: a kind is a few arrays, and how they are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdcore import Batch, Teacher, read_nll


@dataclass(frozen=True)
class Array:
    """A flat file of a store: a number of a type for each token, or `width` numbers."""

    file: str
    dtype: np.dtype
    width: int | None = None
    fill: float = 0  # what stands where nothing was stored

    @property
    def bytes_per_token(self) -> int:
        """Of one token."""
        return self.dtype.itemsize * (self.width or 1)


class Kind(ABC):
    """What is stored of each token. The last of `arrays` is written last, and marks what is there.

    Values come in the order of `arrays`, those of `beside` behind them.
    """

    name: str
    arrays: Sequence[Array]
    beside: Sequence[Array] = ()  # more of each token, not in the store's key; 0: not there yet
    tolerance: float  # by which `differs` may find what is stored off, in rounding of half types

    @property
    def bytes_per_token(self) -> int:
        """On disk, with a hash of two bytes."""
        return 2 + sum(array.bytes_per_token for array in (*self.arrays, *self.beside))

    def bound(self) -> dict[str, object]:
        """What else `meta.json` says of it."""
        return {}

    @abstractmethod
    def missing(self, marks: np.ndarray) -> np.ndarray:
        """What the last array says of some tokens [n] -> whether nothing is stored there."""

    def forgotten(self) -> float:
        """What the last array is to hold where something is to be stored again."""
        return self.arrays[-1].fill

    @abstractmethod
    def scored(self, teacher: Teacher, batch: Batch) -> Sequence[np.ndarray]:
        """What each array, also those beside, holds of what the batch's valid positions predict."""

    @abstractmethod
    def broken(self, values: Sequence[np.ndarray], vocabulary: int) -> np.ndarray:
        """Whether what the arrays hold of some tokens cannot be [n], as where writing was torn."""

    @abstractmethod
    def differs(self, stored: Sequence[np.ndarray], live: Sequence[np.ndarray]) -> np.ndarray:
        """How far what is stored of some tokens is from what the teacher says of them [n]."""


class Losses(Kind):
    """The teacher's negative log-likelihood of the token, as float32. NaN: missing."""

    name = "nll"
    arrays = (Array("nll.f32", np.dtype(np.float32), fill=np.nan),)
    tolerance = 0.25

    def missing(self, marks: np.ndarray) -> np.ndarray:
        """NaN."""
        found: np.ndarray = np.isnan(marks)
        return found

    def scored(self, teacher: Teacher, batch: Batch) -> Sequence[np.ndarray]:
        """The losses of the labels."""
        values = read_nll(teacher, batch)(batch.valid, batch.labels[batch.valid])
        return (values.float().cpu().numpy(),)

    def broken(self, values: Sequence[np.ndarray], vocabulary: int) -> np.ndarray:
        """No loss is negative, but by rounding."""
        found: np.ndarray = ~(values[0] > -1e-3)
        return found

    def differs(self, stored: Sequence[np.ndarray], live: Sequence[np.ndarray]) -> np.ndarray:
        """In nats."""
        found: np.ndarray = np.abs(stored[0] - live[0])
        return found
