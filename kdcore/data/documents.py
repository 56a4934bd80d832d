"""Documents that are drawn for a step by themselves, and laid in rows of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdcore.data.packing import relaid

if TYPE_CHECKING:
    from kdcore.data.rows import RowDataset


class Documents:
    """The documents of a split that any row holds a piece of, in the split's order."""

    def __init__(self, rows: RowDataset) -> None:
        self.rows, self.split, self._pieces = rows, rows.split, rows.pieces()
        self._order = np.lexsort((self._pieces.offset, self._pieces.document))
        begins = np.unique(self._pieces.document[self._order], return_index=True)[1]
        self._begins, self._counts = begins, np.diff(begins, append=len(self._order))

    def __len__(self) -> int:
        return len(self._begins)

    def subset(self, indices: Sequence[int] | np.ndarray) -> RowDataset:
        """All pieces of these documents, laid in rows as all documents are."""
        some = np.asarray(indices, np.int64)
        begins = self._begins[some].tolist()
        ends = (self._begins[some] + self._counts[some]).tolist()
        spans = [self._order[a:b] for a, b in zip(begins, ends, strict=True)]
        pieces = np.concatenate(spans) if spans else self._order[:0]
        return self.rows.laid_anew(relaid(self._pieces, pieces))
