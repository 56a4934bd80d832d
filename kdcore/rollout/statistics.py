"""Statistics of completions, and the warnings based on them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from kdcore.data.where import FROM_DATA, SOURCE, values_in
from kdcore.models.completions import Completion

if TYPE_CHECKING:
    from kdcore.api.run import Run

_log = logging.getLogger("kdcore")

_GRAM = 4
_REPETITIVE = 0.5  # share of repeated 4-grams above which a completion is degenerate
_FIRST = 100  # steps whose mean length is the reference
_FEW = 20  # completions, or steps, below which nothing is concluded
_SHOWN = 3
_LETTERS = 160


def repeats(ids: Sequence[int]) -> float:
    """The share of 4-grams that occurred before in the completion."""
    grams = [tuple(ids[at : at + _GRAM]) for at in range(len(ids) - _GRAM + 1)]
    return 1 - len(Counter(grams)) / len(grams) if grams else 0.0


def sums(completions: Sequence[Completion]) -> list[float]:
    """Sums over completions: number, tokens, finished, shares of repeats."""
    return [
        float(len(completions)),
        float(sum(len(each.ids) for each in completions)),
        float(sum(each.finished for each in completions)),
        sum(repeats(each.ids) for each in completions),
    ]


def rates(totals: Sequence[float]) -> dict[str, float]:
    """The means of `sums`; empty without completions."""
    count, tokens, finished, repeated = totals
    if not count:
        return {}
    return {
        "length": tokens / count,
        "finished": finished / count,
        "repeats": repeated / count,
    }


@dataclass
class Watch:
    """Watches the completions of each step, and warns once of each problem."""

    first: list[float] = field(default_factory=lambda: [0.0, 0.0])  # answers, tokens
    recent: list[list[float]] = field(default_factory=list)  # of the last steps
    useless: int = 0  # consecutive steps
    told: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)  # who has generated so far

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return asdict(self)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Watch:
        """The inverse of `state_dict`."""
        return cls(**state)

    def look(self, run: Run, step: int, completions: Sequence[Completion]) -> None:
        """Take in the completions of a step."""
        totals = sums(completions)
        if step <= _FIRST:
            self.first = [a + b for a, b in zip(self.first, totals, strict=False)]
        self.recent = [*self.recent, totals][-_FEW:]
        count, tokens, finished, _ = (sum(each) for each in zip(*self.recent, strict=True))
        if count >= _FEW and finished < count / 2:
            self._say(run, "finished", f"{finished / count:.0%} of the answers end by themselves")
        if step > _FIRST and count and self.first[0]:
            now, then = tokens / count, self.first[1] / self.first[0]
            if now > 2 * then:
                message = f"answers have {now:.0f} tokens on average, and had {then:.0f} at first"
                self._say(run, "length", message)
        self._look_for_use(run, completions)
        self.sources = sorted({*self.sources, *(one.source for one in completions)})
        if count >= _FEW:
            self._look_for_sources(run)

    def _look_for_sources(self, run: Run) -> None:
        """Whether a term waits for a source that generates nothing."""
        for term in run.recipe.terms:
            asked = values_in((term.where or {}).get(SOURCE, FROM_DATA))
            if not {FROM_DATA, *self.sources} & {*asked}:
                wanted, wrote = (", ".join(map(json.dumps, some)) for some in (asked, self.sources))
                message = (
                    f"the loss {term.label!r} asks for source = {wanted}, and {wrote} wrote all"
                )
                self._say(run, "source", message)

    def _look_for_use(self, run: Run, completions: Sequence[Completion]) -> None:
        useful = any(
            completion.finished and repeats(completion.ids) < _REPETITIVE
            for completion in completions
        )
        self.useless = 0 if useful or not completions else self.useless + 1
        if self.useless >= _FEW:
            texts = [
                repr(str(run.tokenizer.decode([*completion.ids]))[:_LETTERS])
                for completion in completions
            ]
            message = f"{_FEW} steps brought only empty, repeated or truncated answers, such as "
            self._say(run, "useless", message + ", ".join(texts[:_SHOWN]))

    def _say(self, run: Run, key: str, what: str) -> None:
        if key not in self.told:
            self.told = [*self.told, key]
            if run.main:
                _log.warning("rollouts: %s%s", what, _WAYS[key])


_WAYS = {
    "finished": "; the others are cut at rollout.max_new_tokens, and their end is not learned",
    "length": "; a smaller share or rollout.max_new_tokens, or a loss on data as well, may help",
    "useless": "",
    "source": " answers so far: it learns nothing",
}
