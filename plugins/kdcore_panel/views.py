"""Views of a run: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from kdcore import History, facts, formatting, metrics, show_live, summary
from kdcore_panel.frame import Frame
from kdcore_panel.memory import memory_in_use
from kdcore_panel.pace import Pace

if TYPE_CHECKING:
    from kdcore import Record, Run

_MOST_LINES = 20  # for epochs or steps, per run
_MOST_SCORES = 50  # for evaluations
_LETTERS = 200  # characters of a text in a line of the log
Clock = Callable[[], float]


class View:
    """The numbers of a run so far. Subclasses display them."""

    def __init__(self, console: Console, run: Run, clock: Clock = time.monotonic) -> None:
        self.console, self.run, self.clock = console, run, clock
        history = History(_earlier(run.folder, run.step))
        elapsed = history.latest.get("elapsed", 0.0)
        pace = Pace.of(run.steps, run.epochs, run.step, elapsed, clock())
        self.frame = Frame(facts.facts_of_run(run), history, pace, clock())

    def start(self) -> None:
        """The run begins."""

    def step(self, step: int) -> None:
        """Step `step` begins."""
        self.frame.pace.begin(step, self.clock())

    def record(self, record: Record) -> None:
        """Training numbers arrived."""
        self.frame.history.add(metrics.training_line(record))
        self.frame.pace.reach(record.step, self.clock())

    def scores(self, step: int, scores: Mapping[str, float | str]) -> None:
        """An evaluation ended."""
        self.frame.history.add(metrics.evaluation_line(step, scores))
        self.frame.pace.reach(step, self.clock())

    def end(self, error: BaseException | None) -> None:
        """The run ended."""
        self.frame.now = self.clock()
        self.frame.history.latest["elapsed"] = self.frame.pace.elapsed(self.frame.now)

    def close(self) -> None:
        """Restore the terminal."""

    def _say(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)


def _earlier(folder: Path, step: int) -> Iterator[metrics.Line]:
    for line in metrics.iter_metrics(folder):
        at = line["step"]
        if isinstance(at, int) and at <= step:
            yield line


class Lines(View):
    """One plain line per record and per evaluation."""

    def start(self) -> None:
        """Print what is trained."""
        self._say(self.frame.facts.name)
        for label, text in self.frame.facts.rows():
            self._say(f"  {label:<9}  {' '.join(text.splitlines())}")

    def record(self, record: Record) -> None:
        """Print one line."""
        super().record(record)
        pace, now = self.frame.pace, self.clock()
        said = [f"loss {formatting.value(record.loss)}"]
        if len(record.weights) > 1 or {*record.weights.values()} - {1.0}:
            said += [
                f"{label} {formatting.value(value)} (x {record.weights.get(label, 1.0):g})"
                for label, value in record.terms.items()
            ]
        said += [f"lr {record.lr:.2e}", f"{formatting.count(record.tokens_per_second)} tokens/s"]
        if record.kept != 1:
            said.append(f"kept {formatting.percent(record.kept)}")
        said.append(f"left {formatting.duration(pace.remaining(now))}")
        self._say("  ".join([self._place(record.step), *said]))

    def scores(self, step: int, scores: Mapping[str, float | str]) -> None:
        """Print a line of scores, and one per text."""
        super().scores(step, scores)
        texts = {name: text for name, text in scores.items() if isinstance(text, str)}
        values = {
            name: float(value)
            for name, value in scores.items()
            if not isinstance(value, str) and not metrics.is_part(name, scores)
        }
        if values:
            said = [f"{name} {formatting.value(value)}" for name, value in values.items()]
            self._say("  ".join([self._place(step), "evaluation", *said]))
        for name, text in texts.items():
            shown = formatting.shortened(formatting.plain(text), _LETTERS)
            self._say(f"{self._place(step)}  {name}: {shown}")

    def end(self, error: BaseException | None) -> None:
        """Print one line: done or stopped, and where the results are."""
        super().end(error)
        pace, folder = self.frame.pace, self.run.folder
        state = "stopped" if error else "done"
        where = folder / "final" if (folder / "final").is_dir() else folder
        taken = formatting.duration(pace.elapsed(self.frame.now))
        self._say(f"{self._place(pace.step)}  {state} after {taken}  {where}")

    def _place(self, step: int) -> str:
        steps = f"{self.run.steps}"
        return f"{self.frame.facts.name}  step {step:>{len(steps)}}/{steps}"


class Frames(View):
    """The live panel, with log messages and occasional lines of numbers above it."""

    def start(self) -> None:
        """Draw, and redirect other output to above the panel."""
        self._printed = -1  # the step of the last line above the panel
        self._losses: list[float] = []  # since that line
        self.frame.memory = memory_in_use(self.run.device)
        self._shown = show_live(self, self.console)

    def __rich__(self) -> Frame:
        """The panel at this moment."""
        self.frame.now = self.clock()
        return self.frame

    def step(self, step: int) -> None:
        """Count the step, and print a line about the previous ones if it is due."""
        super().step(step)
        if self._is_due():
            self._print_line()

    def record(self, record: Record) -> None:
        """Store the numbers; the refresh shows them."""
        super().record(record)
        self._losses.append(record.loss)
        self.frame.memory = memory_in_use(self.run.device)

    def _is_due(self) -> bool:
        """Whether an epoch, a twentieth of the run or an evaluation ended since the last line."""
        pace, printed = self.frame.pace, max(self._printed, 0)
        seldom = self._printed < 0 or (pace.step - printed) * _MOST_SCORES >= pace.steps
        if self._fresh() and seldom:
            return True
        if not self._losses:
            return False
        if self._in_epochs():
            return pace.ends_epoch() and pace.epoch() % math.ceil(pace.epochs() / _MOST_LINES) == 0
        now, before = (step * _MOST_LINES // pace.steps for step in (pace.step, printed))
        return now > before

    def _in_epochs(self) -> bool:
        """Whether lines are printed per epoch: the recipe counts epochs, and there are several."""
        pace = self.frame.pace
        return bool(pace.per_epoch) and self.frame.facts.in_epochs and pace.epochs() > 1

    def _fresh(self) -> list[tuple[str, float]]:
        """Scores of evaluations since the last line."""
        curves = self.frame.history.scores(parts=False)
        fresh = [curve for curve in curves if curve.points[-1].step > self._printed]
        return [(curve.name.removeprefix("eval/"), curve.now) for curve in fresh]

    def _print_line(self) -> None:
        pace, losses = self.frame.pace, self._losses
        said = [("loss", sum(losses) / len(losses))] if losses else []
        numbers = [f"{name} {formatting.value(value)}" for name, value in [*said, *self._fresh()]]
        elapsed = formatting.duration(pace.elapsed(self.clock()))
        self._shown.print(PrintedLine(f"{self._place()}  {elapsed:>7}", numbers))
        self._printed, self._losses = pace.step, []

    def _place(self) -> str:
        """The epoch that ended, or else the step."""
        pace = self.frame.pace
        steps, epochs = f"{pace.steps:,}", f"{pace.epochs()}"
        place = f"step {pace.step:>{len(steps)},}/{steps}"
        if not self._in_epochs():
            return place
        by_epoch = f"epoch {pace.epoch():>{len(epochs)}}/{epochs}"
        width = max(len(place), len(by_epoch))
        return f"{by_epoch if pace.ends_epoch() else place:<{width}}"

    def end(self, error: BaseException | None) -> None:
        """Replace the panel by the summary, or leave its last state if the run failed."""
        super().end(error)
        if self._losses or self._fresh():
            self._print_line()
        self.close()
        frame = self.frame
        self.console.print(frame if error else summary.Summary(frame.facts, frame.history))

    def close(self) -> None:
        """Remove the panel."""
        self._shown.close()


@dataclass(frozen=True)
class PrintedLine:
    """A line of numbers that wraps with an indentation, at any width."""

    head: str
    numbers: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line, indent = self.head, " " * min(len(self.head), options.max_width // 4)
        for number in self.numbers:
            if line.strip() and len(line) + 2 + len(number) > options.max_width:
                yield Text(line)
                line = indent
            line += f"  {number}"
        yield Text(line)
