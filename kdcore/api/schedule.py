"""Numbers that change during a run: from one value to another, in a straight line."""

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
    """Where a schedule stands: a number, and on the run's device the same as a tensor."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.tensor: Tensor | None = None


def _at_both_ends(holds: Callable[[float, float], bool]) -> Callable[[Schedule, float], bool]:
    """So that `Field(gt=0)` beside a scheduled option means all that it goes through."""
    return lambda schedule, limit: holds(schedule.start, limit) and holds(schedule.end, limit)


@pydantic_dataclass(kw_only=True, frozen=True, eq=False, config=_STRICT)
class Schedule:
    """A number that goes from `start` to `end` until that share of the run is done."""

    start: Number
    end: Number
    until: Annotated[float, Field(gt=0, le=1)] = 1.0

    def __post_init__(self) -> None:
        # Options are frozen; what the run changes is in a box of its own.
        object.__setattr__(self, "_now", _Now(self.start))

    __gt__ = _at_both_ends(operator.gt)
    __ge__ = _at_both_ends(operator.ge)
    __lt__ = _at_both_ends(operator.lt)
    __le__ = _at_both_ends(operator.le)

    def __str__(self) -> str:
        """As formulas write it: `done` is the share of the run that is over."""
        start, end, until = (f"{each:.12g}" for each in (self.start, self.end, self.until))
        return f"({start} + ({end} - {start}) * min(done / {until}, 1))"

    def at(self, done: float) -> float:
        """The value when the share `done` of the run is done."""
        if done >= self.until:
            return self.end
        return self.start + (self.end - self.start) * done / self.until

    def begin(self, device: torch.device) -> None:
        """Keep the value as a tensor of that device too, always the same one."""
        import torch

        now: _Now = vars(self)["_now"]
        now.tensor = torch.full((), now.value, dtype=torch.float64, device=device)

    def move(self, done: float) -> None:
        """Stand where the share `done` of the run puts it."""
        now: _Now = vars(self)["_now"]
        now.value = self.at(done)
        if now.tensor is not None:
            now.tensor.fill_(now.value)


Scheduled = Number | Schedule
"""The type of an option that takes a number or `{start, end, until}`; bounds go beside it."""


def value_now(option: float | Schedule) -> float:
    """What a scheduled option is in the step that runs; before a run, its beginning."""
    if not isinstance(option, Schedule):
        return option
    now: _Now = vars(option)["_now"]
    return now.value


def tensor_now(option: float | Schedule) -> float | Tensor:
    """The same for losses: of a schedule a tensor of no dimensions, which is one input of compiled
    code; a number stays a number.
    """
    if not isinstance(option, Schedule):
        return option
    now: _Now = vars(option)["_now"]
    return now.value if now.tensor is None else now.tensor
