"""How a run is told: a live frame on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.constrain import Constrain
from rich.live import Live
from rich.text import Text

from kdcore import History, facts, formatting, metrics, summary
from kdcore_panel.frame import WIDEST, Frame
from kdcore_panel.pace import Pace
from kdcore_panel.terminal import handlers_of, memory_in_use

if TYPE_CHECKING:
    from kdcore import Record, Run

_MOST_LINES = 20  # for epochs, in a whole run
Clock = Callable[[], float]


class View:
    """Keeps what the run said. Subclasses show it."""

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
        """Training numbers came."""
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
        """Leave the terminal as it was."""

    def _say(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)


def _earlier(folder: Path, step: int) -> Iterator[metrics.Line]:
    for line in metrics.read_metrics(folder):
        at = line["step"]
        if isinstance(at, int) and at <= step:
            yield line


class Lines(View):
    """One plain line for each record and each evaluation."""

    def start(self) -> None:
        """Say what is trained."""
        self._say(self.frame.facts.name)
        for label, text in self.frame.facts.rows():
            self._say(f"  {label:<9}  {' '.join(text.splitlines())}")

    def record(self, record: Record) -> None:
        """A line of formatting."""
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
        """A line of scores, and one for each text."""
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
            self._say(f"{self._place(step)}  {name}: {formatting.plain(text)[:200]}")

    def end(self, error: BaseException | None) -> None:
        """One line: done or stopped, and where things are."""
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
    """The live frame, four times a second, log messages and a line for each epoch above it."""

    def start(self) -> None:
        """Draw, and let whatever writes to the terminal write above the frame."""
        self._told = self.frame.pace.step  # the step of the last line above the frame
        self._losses: list[float] = []  # since then
        self._live = Live(
            get_renderable=self._drawn,
            console=self.console,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )
        self.frame.memory = memory_in_use(self.run.device)
        handlers = handlers_of(sys.stderr)
        self._live.start(refresh=True)
        self._handlers = [(handler, handler.setStream(sys.stderr)) for handler in handlers]

    def _drawn(self) -> Constrain:
        self.frame.now = self.clock()
        # The terminal echoes ^C behind the frame; without room for it the frame would slip a line.
        return Constrain(self.frame, self.console.width - 2)

    def step(self, step: int) -> None:
        """Count; where an epoch ended with the step before, say so."""
        super().step(step)
        pace = self.frame.pace
        if pace.per_epoch and step > 1 and pace.epoch(step) > pace.epoch(step - 1):
            self._tell_epoch()

    def record(self, record: Record) -> None:
        """Take the numbers in; the refresh shows them."""
        super().record(record)
        self._losses.append(record.loss)
        self.frame.memory = memory_in_use(self.run.device)

    def _tell_epoch(self) -> None:
        pace, history = self.frame.pace, self.frame.history
        rare = pace.epoch() % max(1, math.ceil(pace.epochs() / _MOST_LINES)) == 0
        if not self._losses or not (rare or pace.step == pace.steps):
            return
        loss = sum(self._losses) / len(self._losses)
        said = [("loss", loss)]
        said += [
            (curve.name.removeprefix("eval/"), curve.now)
            for curve in history.scores(parts=False)
            if curve.points[-1].step > self._told
        ]
        self._told = pace.step
        line = f"epoch {pace.epoch():>{len(str(pace.epochs()))}}/{pace.epochs()}"
        line += f"  {formatting.duration(pace.elapsed(self.clock())):>7}"
        for part in (f"  {name} {formatting.value(value)}" for name, value in said):
            if len(line + part) > min(self.console.width, WIDEST):
                break
            line += part
        self._say(line)
        self._losses = []

    def end(self, error: BaseException | None) -> None:
        """Replace the frame by the summary, or leave its last state where the run failed."""
        super().end(error)
        if self.frame.pace.per_epoch and self.frame.pace.epochs() > 1:
            self._tell_epoch()
        self.close()
        frame = self.frame
        self.console.print(frame if error else summary.Summary(frame.facts, frame.history))

    def close(self) -> None:
        """Take the frame away and give the log handlers their stream back."""
        self._live.stop()
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._handlers = []
