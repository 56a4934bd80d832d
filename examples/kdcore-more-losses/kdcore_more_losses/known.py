"""Losses on individual ids, for teachers of all ids and of k ids."""

from __future__ import annotations

from torch import Tensor

from kdcore import Loss, Run, hookimpl


class OfKnownIds(Loss):
    """A loss that ignores the bucket of all other ids.

    For a teacher that knows k ids, the engine passes their logits and, last, one for all others.
    """

    _has_others = False

    @hookimpl
    def kdcore_run_start(self, run: Run) -> None:
        """Look up whether the last logit is that of all other ids."""
        self._has_others = run.teacher is not None and run.teacher.ids_known() is not None

    def known(self, values: Tensor) -> Tensor:
        """The columns of individual ids [n, V] -> [n, ids]."""
        return values[:, :-1] if self._has_others else values
