"""Options that change linearly during a run."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_STRICT = ConfigDict(extra="forbid", strict=True)
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Now:
    """The current value of a schedule, as a number and as a tensor on the run's device."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.tensor: Tensor | None = None


def _at_both_ends(holds: Callable[[float, float], bool]) -> Callable[[Schedule, float], bool]:
    """A comparison of both ends, so that `Field(gt=0)` covers every value of the schedule."""
    return lambda schedule, limit: holds(schedule.start, limit) and holds(schedule.end, limit)


@pydantic_dataclass(kw_only=True, frozen=True, eq=False, config=_STRICT)
class Schedule:
    """A number that moves linearly from `start` to `end`, reached at the share `until` of a run."""

    start: Number
    end: Number
    until: Annotated[float, Field(gt=0, le=1)] = 1.0

    def __post_init__(self) -> None:
        # Options are frozen; the mutable current value lives in an object of its own.
        object.__setattr__(self, "_now", _Now(self.start))

    __gt__ = _at_both_ends(operator.gt)
    __ge__ = _at_both_ends(operator.ge)
    __lt__ = _at_both_ends(operator.lt)
    __le__ = _at_both_ends(operator.le)

    def __str__(self) -> str:
        """As in formulas: `done` is the share of the run that is complete."""
        start, end, until = (f"{each:.12g}" for each in (self.start, self.end, self.until))
        return f"({start} + ({end} - {start}) * min(done / {until}, 1))"

    def at(self, done: float) -> float:
        """The value when the share `done` of the run is complete."""
        if done >= self.until:
            return self.end
        return self.start + (self.end - self.start) * done / self.until

    def begin(self, device: torch.device) -> None:
        """Also keep the value as a tensor on this device; it is updated in place."""
        import torch

        now: _Now = vars(self)["_now"]
        now.tensor = torch.full((), now.value, dtype=torch.float64, device=device)

    def move(self, done: float) -> None:
        """Set the current value to that at the share `done` of the run."""
        now: _Now = vars(self)["_now"]
        now.value = self.at(done)
        if now.tensor is not None:
            now.tensor.fill_(now.value)


Scheduled = Number | Schedule
"""The type of an option that takes a number or `{start, end, until}`; combine with bounds."""


def value_now(option: float | Schedule) -> float:
    """The value of an option in the current step; before a run, its start."""
    if not isinstance(option, Schedule):
        return option
    now: _Now = vars(option)["_now"]
    return now.value


def tensor_now(option: float | Schedule) -> float | Tensor:
    """The same for losses: a schedule becomes a 0-d tensor, so that compiled code sees one input
    instead of a new constant at each step; a number stays a number.
    """
    if not isinstance(option, Schedule):
        return option
    now: _Now = vars(option)["_now"]
    return now.value if now.tensor is None else now.tensor
