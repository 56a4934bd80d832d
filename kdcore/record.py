"""What a run tells of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType


@dataclass(frozen=True)
class Record:
    """What happened in the steps since the last record. Plain numbers, means over these steps."""

    step: int
    tokens: int  # valid tokens trained on so far, over all processes
    loss: float
    terms: Mapping[str, float]  # by the label of its `use` ("kl", "kl.2"), weight included
    lr: float
    kept: float  # share of the valid tokens that the selection kept; 1.0 without one
    tokens_per_second: float  # valid tokens, over all processes
    selection: Mapping[str, float]  # threshold, excess_kept, excess_dropped, where scores rank
    gradient: Mapping[str, float] = field(default_factory=dict)  # each term's share, now and then

    def __post_init__(self) -> None:
        # Several listeners are handed the same record.
        object.__setattr__(self, "terms", MappingProxyType(dict(self.terms)))
        object.__setattr__(self, "selection", MappingProxyType(dict(self.selection)))
        object.__setattr__(self, "gradient", MappingProxyType(dict(self.gradient)))

    def __reduce__(self) -> tuple[type[Record], tuple[object, ...]]:
        """Records go to other processes too; the views of their mappings cannot."""
        values = (getattr(self, each.name) for each in fields(self))
        return Record, tuple(dict(v) if isinstance(v, Mapping) else v for v in values)
