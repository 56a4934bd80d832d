"""Losses that look at single ids, for teachers of all ids and of k ids alike."""

from __future__ import annotations

from torch import Tensor

from kdcore import Loss, Run, hookimpl


class OfKnownIds(Loss):
    """A loss for which all other ids together are no id.

    Where the teacher knows k ids, the engine hands over these and, last, all others as one.
    """

    _has_others = False

    @hookimpl
    def kdcore_run_start(self, run: Run) -> None:
        """Whether the last logit stands for all other ids."""
        self._has_others = run.teacher is not None and run.teacher.ids_known() is not None

    def known(self, values: Tensor) -> Tensor:
        """The single ids' part of something that each id has [n, V] -> [n, ids]."""
        return values[:, :-1] if self._has_others else values
