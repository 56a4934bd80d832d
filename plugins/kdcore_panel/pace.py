"""Progress of a run and its remaining time."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Pace:
    """Steps done, and when. The caller supplies the clock, in seconds from any origin."""

    steps: int
    per_epoch: float = 0.0  # 0: unknown, as for streamed data
    step: int = 0
    began_at: int = 0  # steps done before this session
    before: float = 0.0  # seconds of earlier sessions
    started: float = 0.0
    first: float = 0.0  # start of this session's first step
    last: float = 0.0  # end of the last finished step

    @classmethod
    def of(cls, steps: int, epochs: float, step: int, before: float, now: float) -> Pace:
        """The pace at the start of a session; `epochs` is 0 or infinite for streamed data."""
        known = math.isfinite(epochs) and epochs > 0
        per_epoch = steps / epochs if known else 0.0
        return cls(steps, per_epoch, step, step, before, started=now, first=now, last=now)

    def begin(self, step: int, now: float) -> None:
        """Step `step` begins; all earlier ones are done."""
        if step - 1 == self.began_at:
            self.first = now
        self.step, self.last = step - 1, now

    def reach(self, step: int, now: float) -> None:
        """Step `step` is done."""
        if step > self.step:
            self.step, self.last = step, now

    def elapsed(self, now: float) -> float:
        """Seconds of training, earlier sessions included."""
        return self.before + now - self.started

    def remaining(self, now: float) -> float | None:
        """Seconds left at the pace so far, evaluations included; None before the first step."""
        done = self.step - self.began_at
        if done < 1:
            return None
        each = (self.last - self.first) / done
        return max(0.0, each * (self.steps - self.step) - (now - self.last))

    def share(self) -> float:
        """The share of the run that is done."""
        return self.step / self.steps if self.steps else 1.0

    def epoch(self, step: int | None = None) -> int:
        """The epoch of a step, counted from 1."""
        step = self.step if step is None else step
        return max(1, math.ceil(step / self.per_epoch - 1e-6)) if self.per_epoch else 1

    def ends_epoch(self) -> bool:
        """Whether the last finished step ended an epoch, or the run."""
        last = self.step == self.steps
        return self.step > 0 and (last or self.epoch() < self.epoch(self.step + 1))

    def epochs(self) -> int:
        """The number of epochs that begin in the run."""
        return self.epoch(self.steps)

    def in_epoch(self) -> tuple[int, int]:
        """The batch within the epoch, and the number of batches per epoch."""
        if not self.per_epoch:
            return self.step, self.steps
        starts = [math.floor(self.per_epoch * n + 1e-6) for n in (self.epoch() - 1, self.epoch())]
        return self.step - starts[0], min(starts[1], self.steps) - starts[0]
