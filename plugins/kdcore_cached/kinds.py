"""What a cache stores per token: a kind is a few arrays, and how to compute them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdcore import Batch, Teacher, read_nll


@dataclass(frozen=True)
class Array:
    """A flat file of a store: per token one number of a type, or `width` numbers."""

    file: str
    dtype: np.dtype
    width: int | None = None
    fill: float = 0  # the value of empty slots

    @property
    def bytes_per_token(self) -> int:
        """Bytes per token."""
        return self.dtype.itemsize * (self.width or 1)


class Kind(ABC):
    """What is stored per token. The last of `arrays` is written last and marks filled slots.

    Values come in the order of `arrays`, followed by those of `extras`.
    """

    name: str
    arrays: Sequence[Array]
    extras: Sequence[Array] = ()  # extra files outside of the store's key; 0: empty
    tolerance: float  # largest difference in `differs` that rounding of half types explains

    @property
    def bytes_per_token(self) -> int:
        """Bytes on disk, including a checksum of two bytes."""
        return 2 + sum(array.bytes_per_token for array in (*self.arrays, *self.extras))

    def bound(self) -> dict[str, object]:
        """The kind's own entries in `meta.json`."""
        return {}

    @abstractmethod
    def missing(self, marks: np.ndarray) -> np.ndarray:
        """The last array at some tokens [n] -> whether the slot is empty."""

    def forgotten(self) -> float:
        """The value of the last array that empties a slot."""
        return self.arrays[-1].fill

    @abstractmethod
    def scored(self, teacher: Teacher, batch: Batch) -> Sequence[np.ndarray]:
        """Each array's values, extra files too, for the tokens that valid positions predict."""

    @abstractmethod
    def broken(self, values: Sequence[np.ndarray], vocabulary: int) -> np.ndarray:
        """Whether values cannot be valid [n], for example after a torn write."""

    @abstractmethod
    def differs(self, stored: Sequence[np.ndarray], live: Sequence[np.ndarray]) -> np.ndarray:
        """The difference between stored and live values of some tokens [n]."""


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
        """Negative losses, beyond rounding."""
        found: np.ndarray = ~(values[0] > -1e-3)
        return found

    def differs(self, stored: Sequence[np.ndarray], live: Sequence[np.ndarray]) -> np.ndarray:
        """The absolute difference in nats."""
        found: np.ndarray = np.abs(stored[0] - live[0])
        return found
