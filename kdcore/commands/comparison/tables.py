"""Output of comparisons: terminal, Markdown, LaTeX, CSV, JSON, and a sentence."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from kdcore.analysis.statistics.differences import FEWEST_SEEDS
from kdcore.commands.comparison.arms import Arm
from kdcore.commands.comparison.courses import Axis, Half
from kdcore.commands.comparison.paired import Compared, Margin
from kdcore.commands.fitting import Column, Fitting
from kdcore.terminal.formatting import count, duration, value

_SAME = 1e-3  # relative difference of token counts within which they are one
_WORDS = {
    "eval/nll": "validation loss (nats per token)",
    "eval/bits_per_byte": "validation bits per byte",
    "eval/perplexity": "validation perplexity",
}


@dataclass(frozen=True, eq=False)
class Comparison:
    """All arms against the baseline, where both sides had the same budget."""

    arms: Sequence[Arm]
    baseline: Arm
    metric: str
    axis: Axis
    margin: Margin
    rows: Sequence[Compared]
    lower: bool  # is better
    refused: str | None = None
    half: Half | None = None  # of the held-out documents

    @property
    def words(self) -> str:
        """The metric's name in papers."""
        said = _WORDS.get(self.metric, self.metric.removeprefix("eval/"))
        return f"{said} on the {self.half} half of the documents" if self.half else said

    @property
    def counts_cpu_seconds(self) -> bool:
        """Whether time is CPU seconds."""
        return next(iter(self.baseline.runs.values())).clock == "cpu_seconds"

    @property
    def budget(self) -> str:
        """What both sides had as much of."""
        if self.axis == "tokens":
            return "at equal tokens"
        return "at equal CPU time" if self.counts_cpu_seconds else "at equal time"

    @property
    def judged(self) -> int:
        """The number of comparisons with a verdict."""
        return sum(row.judgement.verdict is not None for row in self.rows)

    @property
    def correction(self) -> str:
        """The correction for multiple comparisons."""
        if self.judged < 2:
            return ""
        return f"Holm's correction over {self.judged} comparisons"


def title(found: Comparison) -> str:
    """What is compared, and which direction is better."""
    way = "lower" if found.lower else "higher"
    base = found.baseline.label
    return f"{found.words}, {way} is better: against {base}, {found.budget}"


def cells(row: Compared) -> list[str]:
    """Arm, pairs, its mean, the baseline's mean, difference, interval and verdict, as texts."""
    return [
        row.arm.label,
        str(len(row.pairs)),
        with_spread(row, 1),
        with_spread(row, 0),
        signed(row.found.mean),
        interval(row),
        verdict(row),
    ]


def titles(found: Comparison) -> list[str]:
    """Column titles."""
    base = f"mean of {found.baseline.label}"
    return ["arm", "n", "mean", base, "difference", "95 % interval", "verdict"]


def with_spread(row: Compared, which: int) -> str:
    """Mean and sample standard deviation over the seeds of the pairs."""
    return with_deviation(row.values(which))


def with_deviation(numbers: Sequence[float]) -> str:
    """Mean and sample standard deviation with as many decimals."""
    if not numbers or not all(map(math.isfinite, numbers)):
        return "-"
    mean = value(fmean(numbers))
    decimals = len(mean.partition(".")[2])
    return f"{mean} ± {stdev(numbers):,.{decimals}f}" if len(numbers) > 1 else mean


def signed(number: float) -> str:
    """A difference with its sign."""
    return "-" if math.isnan(number) else f"{number:+.4f}"


def interval(row: Compared) -> str:
    """The interval, and its source if that is not seeds."""
    low, high = row.found.interval()
    if math.isnan(low):
        return "-"
    said = f"{low:+.4f} to {high:+.4f}"
    return f"{said} (these weights, other documents)" if row.found.source == "documents" else said


def verdict(row: Compared) -> str:
    """The verdict in one word, or that there is none."""
    return row.judgement.verdict or "no verdict"


def shown(comparisons: Sequence[Comparison]) -> Iterator[RenderableType]:
    """For the terminal, without the final sentences."""
    for found in comparisons:
        yield Text(title(found), "bold")
        if found.refused:
            yield Text(f"not compared: {found.refused}", "yellow")
        else:
            yield _table(found)
            yield from (Text(note, "dim") for note in notes(found))
        yield Text()
    yield Text("For a paper:", "bold")


def _table(found: Comparison) -> Fitting:
    importance = {"arm": 9, "n": 3, "difference": 8, "95 % interval": 7, "verdict": 10}
    texts = ("arm", "verdict")
    lines = [cells(row) for row in found.rows]
    return Fitting(
        [
            Column(name, [line[n] for line in lines], importance.get(name, 2), name not in texts)
            for n, name in enumerate(titles(found))
        ],
        whole="--json has all",
    )


def notes(found: Comparison) -> Iterator[str]:
    """Notes for reading the table."""
    for row in found.rows:
        yield f"{row.arm.label}: {verdict(row)}: {row.judgement.reason}"
        yield from (f"{row.arm.label}: {note}" for note in row.notes)
        yield f"{row.arm.label}: {place(found, row)}" if row.pairs else ""
    unfinished = [said for arm in found.arms for said in arm.unfinished]
    if unfinished:
        yield f"unfinished: {', '.join(unfinished)}"
    said = f"margin: {found.margin}; pairs are runs of one seed"
    yield f"{said}; {found.correction}" if found.correction else said


def place(found: Comparison, row: Compared) -> str:
    """The point of comparison on the axis."""
    _, one, other = row.at
    kind = "CPU time" if found.counts_cpu_seconds else "running"
    if found.axis == "tokens":
        took = f", which took {duration(one)} and {duration(other)}" if one == one else ""
        took += " of CPU time" if took and found.counts_cpu_seconds else ""
        return f"after {_tokens(row)} tokens{took}"
    return f"after {duration(one)} of {kind}, evaluations included"


def _tokens(row: Compared) -> str:
    """The number; the lowest and the highest if pairs were read at different ones."""
    low, *_, high = sorted([pair.readings[1].tokens for pair in row.pairs] * 2)
    same = high - low <= _SAME * high
    return count(high) if same else f"{count(low)} to {count(high)}"


def sentence(found: Comparison, row: Compared) -> str:
    """A sentence for a paper."""
    arm, base, what = row.arm.label, found.baseline.label, found.words
    means = f"{value(row.mean(1))} against {value(row.mean(0))}"
    low, high = row.found.interval()
    between = f"95 % interval of the difference {low:.4f} to {high:.4f}"
    if row.judgement.verdict is None:
        return _without_verdict(found, row, means, between)
    head = {
        "better": f"{arm} is better than {base} in {what}",
        "worse": f"{arm} is worse than {base} in {what}",
        "undecided": f"Whether {arm} differs from {base} in {what} is undecided",
        "no difference above the margin": f"{arm} and {base} differ by less than {found.margin} "
        f"in {what}",
    }[row.judgement.verdict]
    counted = f"{len(row.pairs)} paired seeds"
    if row.found.documents:
        counted += f" and {row.found.documents:,} held-out documents, both counted as random"
    corrected = f"; {found.correction}" if found.correction else ""
    unfinished = [*found.baseline.unfinished, *row.arm.unfinished]
    rest = f" Unfinished: {', '.join(unfinished)}." if unfinished else ""
    return f"{head} {found.budget}: {means} ({between}; {counted}{corrected}).{rest}"


def _without_verdict(found: Comparison, row: Compared, means: str, between: str) -> str:
    arm, base = row.arm.label, found.baseline.label
    seeds = len(row.pairs)
    if not seeds:
        return f"{arm} and {base} have no seed in common, so they cannot be compared."
    paired = "one seed" if seeds == 1 else f"{seeds} paired seeds"
    said = f"With {paired}, {arm} had {means} of {base} in {found.words}"
    if row.found.source is None:
        return f"{said}; fewer than {FEWEST_SEEDS} seeds allow no verdict."
    return (
        f"{said} ({between}, of these weights on other documents); fewer than {FEWEST_SEEDS} "
        "seeds allow no verdict."
    )


def as_row(found: Comparison, row: Compared) -> dict[str, Any]:
    """A flat row, for CSV and JSON."""
    low, high = row.found.interval()
    tokens, one, other = row.at
    numbers = {
        "baseline_mean": row.mean(0),
        "baseline_spread": row.spread(0),
        "arm_mean": row.mean(1),
        "arm_spread": row.spread(1),
        "difference": row.found.mean,
        "low": low,
        "high": high,
        "margin": row.margin,
        "tokens": tokens,
        "baseline_seconds": one,
        "arm_seconds": other,
    }
    return {
        "metric": found.metric,
        "at": found.axis,
        "baseline": found.baseline.label,
        "arm": row.arm.label,
        "seeds": len(row.pairs),
        "documents": row.found.documents,
        **{key: each if math.isfinite(each) else None for key, each in numbers.items()},
        "interval_counts": row.found.source,
        "comparisons": found.judged,
        "verdict": row.judgement.verdict,
        "reason": row.judgement.reason,
    }


def as_json(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Everything, with the runs of each pair; refused comparisons with their reason."""
    made = list[dict[str, Any]]()
    for found in comparisons:
        if found.refused:
            made.append({"metric": found.metric, "at": found.axis, "refused": found.refused})
        for row in found.rows:
            pairs = [
                {
                    "seed": pair.seed,
                    "baseline": str(pair.baseline.folder),
                    "arm": str(pair.other.folder),
                    "baseline_value": pair.readings[0].value,
                    "arm_value": pair.readings[1].value,
                }
                for pair in row.pairs
            ]
            more = {"notes": list(row.notes), "sentence": sentence(found, row), "pairs": pairs}
            made.append(as_row(found, row) | more)
    return made


def as_csv(comparisons: Sequence[Comparison]) -> str:
    """One row per arm and point; refused comparisons are left out."""
    rows = [as_row(found, row) for found in comparisons for row in found.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def as_markdown(comparisons: Sequence[Comparison]) -> str:
    """One table per point, with its notes."""
    parts = list[str]()
    for found in comparisons:
        parts.append(f"**{title(found)}**\n")
        if found.refused:
            parts.append(f"Not compared: {found.refused}\n")
            continue
        lines = [titles(found), ["---"] * len(titles(found)), *map(cells, found.rows)]
        parts += ["| " + " | ".join(_in_markdown(c) for c in line) + " |" for line in lines]
        parts += ["", *(f"{note}  " for note in notes(found)), ""]
    return "\n".join(parts).rstrip("\n")


def _in_markdown(text: str) -> str:
    return text.replace("|", "\\|")


def as_latex(comparisons: Sequence[Comparison]) -> str:
    """One booktabs tabular per point, with its notes as comments."""
    parts = list[str]()
    for found in comparisons:
        parts.append(f"% {title(found)}")
        if found.refused:
            parts.append(f"% not compared: {found.refused}")
            continue
        parts += [r"\begin{tabular}{lrrrrrl}", r"\toprule"]
        head, *lines = [titles(found), *map(cells, found.rows)]
        rows = [" & ".join(map(_in_latex, line)) + r" \\" for line in (head, *lines)]
        parts += [rows[0], r"\midrule", *rows[1:], r"\bottomrule", r"\end{tabular}"]
        parts += [f"% {note}" for note in notes(found)]
    return "\n".join(parts)


_LATEX = {
    "±": r"$\pm$",
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def _in_latex(text: str) -> str:
    escaped = "".join(_LATEX.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)
