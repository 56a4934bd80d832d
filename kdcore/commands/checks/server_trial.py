"""A trial of a teacher behind a server with a few rows: whether it answers, and how fast."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdcore.analysis.rows import RowSample
from kdcore.api.options import describe, iter_components
from kdcore.api.teacher import Teacher
from kdcore.objective.teachers import known_to, load_teacher, read_outputs
from kdcore.runs.open import iter_batches
from kdcore.terminal.formatting import disk_size, duration, percent

if TYPE_CHECKING:
    from kdcore.training.run_state import RunState

_ROWS = 8
_PATIENCE = "give_up_after"  # option with the seconds for which requests are retried


@dataclass(frozen=True)
class Trial:
    """Results for a few rows, and what all of the data would take."""

    who: str
    tokens: int  # tokens sent
    seconds: float
    known: float  # the share of them that it covers
    whole: int  # tokens of the training data
    bytes_per_token: float  # stored per token

    def lines(self) -> Iterator[tuple[str, str]]:
        """For `kdcore doctor`."""
        rate = self.tokens / self.seconds
        yield "server", f"{self.who} answers"
        yield "speed", f"{rate:,.0f} tokens a second, of {self.tokens:,} in {_ROWS} rows at most"
        yield "aligned", f"it knows {percent(self.known)} of them"
        kept = f" and {disk_size(self.bytes_per_token * self.whole)} on disk"
        yield (
            "whole data",
            f"{self.whole:,} tokens: about {duration(self.whole / rate)}"
            f"{kept if self.bytes_per_token else ''}",
        )


def is_elsewhere(teacher: Teacher) -> bool:
    """Whether it, or a nested one, is behind a server: requests are retried for some time."""
    return any(_PATIENCE in each.elsewhere for each in iter_components(teacher))


def try_out(run: RunState, teacher: Teacher, sample: RowSample) -> Trial:
    """Send it the first rows. `run` knows the shared ids.

    Raises RunError if it is unreachable, after one attempt.
    """
    asked = teacher
    while asked.loads_members:  # unwrap caches
        nested = [one for one in iter_components(asked) if isinstance(one, Teacher)]
        asked = nested[1]
    remote = [one for one in iter_components(asked) if _PATIENCE in one.elsewhere]
    who = ", ".join(describe(one) for one in remote)
    for one in remote:
        setattr(one, _PATIENCE, 0.0)
    load_teacher(run, asked)
    rows = run.laid("train")[: min(_ROWS, sample.rows_in_all)]
    tokens, known, seconds = 0, 0, 0.0
    for batch in iter_batches(run, rows):
        began = time.perf_counter()
        read_outputs(asked, batch)(batch.valid)
        seconds += time.perf_counter() - began
        tokens += len(batch.valid)
        known += int(known_to(asked, batch).sum())
    return Trial(who, tokens, seconds, known / tokens, sample.tokens, teacher.bytes_per_token())
