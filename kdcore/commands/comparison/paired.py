"""Arms compared with a baseline in pairs of equal seeds, at equal tokens or time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from kdcore.analysis.statistics.differences import Difference, difference, residuals
from kdcore.analysis.statistics.verdicts import Judgement, judge
from kdcore.commands.comparison.arms import Arm
from kdcore.commands.comparison.courses import (
    Axis,
    Course,
    Reading,
    nats_and_sizes,
    shares_rows,
)
from kdcore.document_losses import DocumentLosses
from kdcore.errors import UsageError, did_you_mean

PER_TOKEN = ("nll", "perplexity", "kl", "teacher_nll", "agreement")  # means over tokens
_LATE = 0.9  # of its tokens: a cosine has fallen by 98 %
OF_ROWS = (*PER_TOKEN, "bits_per_byte")  # measured on held-out rows


@dataclass(frozen=True)
class Margin:
    """The difference below which two values count as equal."""

    value: float
    relative: bool  # as a share of the baseline's mean

    def of(self, baseline: float) -> float:
        """In the metric's unit."""
        return self.value * abs(baseline) if self.relative else self.value

    def __str__(self) -> str:
        return f"{100 * self.value:g} % of the baseline" if self.relative else f"{self.value:g}"


@dataclass(frozen=True, eq=False)
class Pair:
    """Two runs of one seed, where both had the same budget."""

    seed: object
    baseline: Course
    other: Course
    readings: tuple[Reading, Reading]

    @property
    def difference(self) -> float:
        """The other's value minus the baseline's."""
        return self.readings[1].value - self.readings[0].value


@dataclass(frozen=True, eq=False)
class Compared:
    """An arm against the baseline."""

    arm: Arm
    pairs: Sequence[Pair]
    found: Difference
    margin: float  # in the metric's unit
    judgement: Judgement
    notes: Sequence[str]

    def values(self, which: int) -> list[float]:
        """The values of paired runs: 0 the baseline's, 1 the arm's."""
        return [pair.readings[which].value for pair in self.pairs]

    def mean(self, which: int) -> float:
        """Their mean."""
        return fmean(self.values(which)) if self.pairs else math.nan

    def spread(self, which: int) -> float:
        """Their sample standard deviation over seeds; NaN for one pair."""
        return stdev(self.values(which)) if len(self.pairs) > 1 else math.nan

    @property
    def at(self) -> tuple[float, float, float]:
        """Mean tokens, and mean seconds of the baseline and of the arm."""
        both = [pair.readings for pair in self.pairs]
        if not both:
            return math.nan, math.nan, math.nan
        return (
            fmean(other.tokens for _, other in both),
            *(fmean(each[n].seconds for each in both) for n in (0, 1)),  # type: ignore[return-value]
        )


def known_metric(arms: Sequence[Arm], asked: str) -> str:
    """The metric's full name. Raises UsageError unless all runs measured it."""
    courses = [course for arm in arms for course in arm.runs.values()]
    names = list(dict.fromkeys(name for course in courses for name in course.metrics()))
    metric = asked if asked.startswith("eval/") else f"eval/{asked}"
    if metric not in names:
        there = f"they measured {', '.join(names)}" if names else "they have not been evaluated"
        # Without the prefix, which makes any two metrics look alike.
        near = did_you_mean(metric[5:], [name.removeprefix("eval/") for name in names])
        raise UsageError(f"no run measured {asked!r}; {there}{near}")
    for course in courses:
        if metric not in course.metrics():
            raise UsageError(f"{course.folder} has not measured {metric}: leave it out")
    return metric


def compared(
    arms: Sequence[Arm], baseline: Arm, metric: str, axis: Axis, margin: Margin, *, lower: bool
) -> list[Compared]:
    """All other arms against the baseline; whether a lower metric is better.

    Raises UsageError for incomparable ones.
    """
    others = [arm for arm in arms if arm is not baseline]
    every = [list(_pairs(baseline, arm, metric, axis)) for arm in others]
    for pairs in every:
        for pair in pairs:
            _refuse(pair, metric, axis)
    found = [_difference(pairs, metric) for pairs in every]
    margins = [margin.of(_base(pairs)) for pairs in every]
    judged = judge([each for each, _ in found], margins, lower_is_better=lower)
    return [
        Compared(
            arm,
            pairs,
            each,
            wide,
            judgement,
            [*_said_of(baseline, arm), *_said_of_pairs(baseline, arm, pairs, metric), *notes],
        )
        for arm, pairs, (each, notes), wide, judgement in zip(
            others, every, found, margins, judged, strict=True
        )
    ]


def _base(pairs: Sequence[Pair]) -> float:
    return fmean(pair.readings[0].value for pair in pairs) if pairs else math.nan


def _pairs(baseline: Arm, arm: Arm, metric: str, axis: Axis) -> Iterator[Pair]:
    for seed, one in baseline.runs.items():
        other = arm.runs.get(seed)
        if other is None:
            continue
        ends = [course.end(metric, axis) for course in (one, other)]
        known = [end for end in ends if end is not None]
        if len(known) < 2:
            lacking = one if ends[0] is None else other
            raise UsageError(f"{lacking.folder} has no {metric} measured during its own training")
        readings = tuple(course.at(metric, axis, min(known)) for course in (one, other))
        first, last = readings
        if first is None or last is None:
            slow = one if first is None else other
            raise UsageError(
                f"{slow.folder} has no {metric} measured before the other run ended: lower "
                "train.eval_every"
            )
        for course, reading in ((one, first), (other, last)):
            if not math.isfinite(reading.value):
                step = reading.steps[-1]
                raise UsageError(
                    f"{course.folder} diverged: {metric} is not finite at step {step}, so its arm "
                    f"has no mean; leave seed {seed} out, and say so"
                )
        yield Pair(seed, one, other, (first, last))


def _refuse(pair: Pair, metric: str, axis: Axis) -> None:
    """Raise UsageError for runs that are not comparable."""
    one, other = pair.baseline, pair.other
    names = f"{one.folder.name} and {other.folder.name}"
    tokenizers = {one.tokenizer, other.tokenizer} - {None}
    what = metric.removeprefix("eval/").partition("/")[0]
    if len(tokenizers) > 1 and what in PER_TOKEN:
        raise UsageError(
            f"{names} have different tokenizers, so their {metric} counts different tokens: "
            "compare --metric eval/bits_per_byte instead"
        )
    if what in OF_ROWS and _other_rows(pair, same_tokens=len(tokenizers) < 2):
        raise UsageError(
            f"{names} were measured on other held-out rows: they need the same validation data, "
            'train.eval_rows and train.eval_seed (with different tokenizers eval_rows = "all")'
        )
    if axis == "time" and one.device != other.device:
        raise UsageError(
            f"{names} ran on different devices ({one.device or 'unknown'}; "
            f"{other.device or 'unknown'}), so equal time says nothing: --at tokens compares them"
        )


def _other_rows(pair: Pair, *, same_tokens: bool) -> bool:
    one, other = _kept(pair)
    if one is not None and other is not None:
        return one.rows != other.rows if same_tokens else not one.same_text(other)
    return shares_rows([pair.baseline, pair.other]) is False


def _kept(pair: Pair) -> list[DocumentLosses | None]:
    courses = (pair.baseline, pair.other)
    return [course.documents(at) for course, at in zip(courses, pair.readings, strict=True)]


def _difference(pairs: Sequence[Pair], metric: str) -> tuple[Difference, list[str]]:
    """The mean difference, with the documents' part if known; else why it is unknown."""
    differences = np.array([pair.difference for pair in pairs])
    made = [_of_documents(pair, metric) for pair in pairs]
    known = [each for each in made if each is not None]
    if len(known) < len(pairs) or not pairs:
        why = "documents are not counted: "
        scored = metric in ("eval/nll", "eval/bits_per_byte")
        why += "these runs kept no losses of documents" if scored else f"{metric} has none"
        return difference(differences), [why] if pairs else []
    sizes = known[0][1]
    if any(len(each) != len(sizes) or (each != sizes).any() for _, each in known):
        return difference(differences), [
            "each seed has held-out rows of its own, so seeds show the noise of documents too"
        ]
    nats = np.stack([each for each, _ in known])
    return difference(differences, residuals(nats, sizes, differences)), []


def _of_documents(pair: Pair, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Each document's difference of sums, and its size."""
    one, other = (None if each is None else nats_and_sizes(each, metric) for each in _kept(pair))
    if one is None or other is None:
        return None
    return other[0] - one[0], one[1]


def _said_of(baseline: Arm, arm: Arm) -> Iterator[str]:
    """Notes on seeds without a partner, and on arms that started from trained weights."""
    began = [(each.label, next(iter(each.runs.values())).begun_with) for each in (baseline, arm)]
    for label, begun_with in began if began[0][1] != began[1][1] else ():
        if begun_with is not None:
            yield f"{label} began with the weights of {begun_with}, whose cost is not counted"
    for one, other in ((baseline, arm), (arm, baseline)):
        if alone := [str(seed) for seed in one.runs if seed not in other.runs]:
            said = "seed {} of {} has no partner and is left out"
            if len(alone) > 1:
                said = "seeds {} of {} have no partner and are left out"
            yield said.format(", ".join(alone), one.label)


def _said_of_pairs(baseline: Arm, arm: Arm, pairs: Sequence[Pair], metric: str) -> Iterator[str]:
    """Notes on equal scores, and on an arm that is read long before its end."""
    if pairs and not any(pair.difference for pair in pairs):
        yield "each pair has the same score twice: what differs has no effect on this metric"
    for n, each in enumerate((baseline, arm)):
        shares = [_share(pair, n, metric) for pair in pairs]
        if shares and fmean(shares) < _LATE and any(c.lowers_its_rate for c in each.runs.values()):
            yield (
                f"{each.label} is read after {fmean(shares):.0%} of its tokens, before its "
                "learning rate has fallen as in a run of that length"
            )


def _share(pair: Pair, n: int, metric: str) -> float:
    """The share of a run's tokens after which it is read: 0 the baseline, 1 the other."""
    course = (pair.baseline, pair.other)[n]
    end = course.end(metric, "tokens")
    return pair.readings[n].tokens / end if end else 1.0
