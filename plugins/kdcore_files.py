"""The run folder's record: metrics.jsonl, one JSON object a line, log.txt, and rollouts.jsonl.

rollouts.jsonl has a few answers for each training line of a recipe with a [rollout], one a line:
`step`, `source`, `finished`, `prompt`, `text`.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path

from kdcore import (
    Completion,
    Logger,
    Record,
    Run,
    RunError,
    component,
    formatting,
    hookimpl,
    metrics,
    redact_secrets,
)

_kdcore = logging.getLogger("kdcore")

ROLLOUTS = "rollouts.jsonl"


def cut_after(path: Path, step: int) -> list[metrics.Line]:
    """Drop torn lines and those of later steps, in one atomic replacement; return what is kept.

    Lines that an earlier start could write only to the fallback file are merged back.
    """
    if not path.is_file() and not _rest(path).is_file():
        return []
    lines = [*metrics.whole_lines(path), *metrics.whole_lines(_rest(path))]
    kept = [(text, line) for text, line in lines if _step(line) <= step]
    whole = "".join(text for text, _ in kept).encode()
    if not path.is_file() or whole != path.read_bytes():
        temporary = path.with_name(path.name + ".cut")
        with temporary.open("wb") as file:
            file.write(whole)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    _rest(path).unlink(missing_ok=True)
    return [line for _, line in kept]


def _rest(path: Path) -> Path:
    """The fallback file, for lines that could not be written to the file itself."""
    return path.with_name(f"{path.stem}.rest{path.suffix}")


def _step(line: metrics.Line) -> int:
    step = line["step"]
    assert isinstance(step, int)
    return step


class Growing:
    """An append-only text file. Text that cannot be written is held and retried with the next."""

    def __init__(self, path: Path) -> None:
        self.path, self.held = path, ""
        self._file: FileIO | None = None
        self._whole = 0  # size before the current write

    def add(self, text: str) -> OSError | None:
        """Append a text; return why it is held if the write failed."""
        self.held += text
        return self.flush()

    def flush(self) -> OSError | None:
        """Write what is held; return the error if that fails."""
        try:
            self._write(self.held.encode("utf-8", "backslashreplace"))
        except OSError as error:
            self.close()
            return error
        self.held = ""
        return None

    def _write(self, content: bytes) -> None:
        if self._file is None:
            self._file = self.path.open("ab", buffering=0)
            if self.held and self._whole:
                self._file.truncate(self._whole)  # the partial write
        self._whole = os.fstat(self._file.fileno()).st_size
        rest = content
        while rest:
            rest = rest[self._file.write(rest) :]
        self._whole += len(content)

    def close(self) -> None:
        """Close the file; the next `add` reopens it."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        self._file = None


def _latest(lines: Sequence[metrics.Line], key: str) -> float:
    """The highest value of a key that grows; 0 if there is none."""
    return max((float(line.get(key) or 0) for line in lines), default=0.0)


def _rollout_line(run: Run, step: int, answer: Completion) -> str:
    prompt = [] if answer.prompt is None else [*answer.prompt.ids]
    line: dict[str, object] = {
        "step": step,
        "source": answer.source,
        "finished": answer.finished,
        "prompt": run.tokenizer.decode(prompt),
        "text": run.tokenizer.decode([*answer.ids]),
    }
    return json.dumps(line) + "\n"


class _Log(logging.Handler):
    """Log messages to a growing file. Never raises: messages that cannot be written are held."""

    def __init__(self, file: Growing) -> None:
        super().__init__()
        self.file = file
        self.setFormatter(_Escaping("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """One message."""
        self.file.add(self.format(record) + "\n")


class _Escaping(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact_secrets(formatting.escaped(super().format(record)))


@component
class Files(Logger):
    """Writes metrics.jsonl and log.txt into the run folder.

    Records that cannot be written (disk full) are held and retried with the next record. If they
    still cannot be written at a checkpoint, the run ends, because they would be lost.
    """

    name = "files"
    always = True

    def __post_init__(self) -> None:
        self._metrics: Growing | None = None
        self._log: _Log | None = None
        self._rollouts: Growing | None = None  # opened at the first answer
        self._resumed_at, self._known = -1, frozenset[str]()

    @hookimpl
    def kdcore_run_start(self, run: Run) -> None:
        """Drop records later than the checkpoint, left by a crash, and open the files."""
        if not run.main:
            return
        before = cut_after(run.folder / metrics.METRICS, run.step)
        cut_after(run.folder / ROLLOUTS, run.step)
        self._resume(before, run.step)
        self._metrics = Growing(run.folder / metrics.METRICS)
        self._log = _Log(Growing(run.folder / metrics.LOG))
        logging.getLogger("kdcore").addHandler(self._log)
        self._note(f"begins after step {run.step} of {run.steps}")

    def _resume(self, before: Sequence[metrics.Line], step: int) -> None:
        self._resumed_at = step
        self._known = frozenset(key for line in before if line["step"] == step for key in line)
        self._started = time.monotonic() - _latest(before, "elapsed")
        self._cpu_started = time.process_time() - _latest(before, "cpu_seconds")

    @hookimpl
    def kdcore_log(self, run: Run, record: Record) -> None:
        """One training line."""
        self._write(run, metrics.training_line(record))

    @hookimpl
    def kdcore_written(self, run: Run, step: int, completions: Sequence[Completion]) -> None:
        """One line for each of a few answers."""
        if self._metrics is None or not completions:
            return
        self._rollouts = self._rollouts or Growing(run.folder / ROLLOUTS)
        self._rollouts.add("".join(_rollout_line(run, step, one) for one in completions))

    @hookimpl
    def kdcore_scores(self, run: Run, step: int, scores: Mapping[str, float | str]) -> None:
        """One evaluation line, unless the file has it from before the run was resumed."""
        if step == self._resumed_at:
            scores = {name: v for name, v in scores.items() if f"eval/{name}" not in self._known}
        if scores:
            self._write(run, metrics.evaluation_line(step, scores))

    def _write(self, run: Run, line: metrics.Line) -> None:
        if self._metrics is None:
            return
        about: metrics.Line = {"stage": run.recipe.name, "step": line["step"], "tokens": run.tokens}
        about["time"] = round(time.time(), 3)
        about["elapsed"] = round(time.monotonic() - self._started, 3)
        about["cpu_seconds"] = round(time.process_time() - self._cpu_started, 3)
        first = not self._metrics.held
        if (error := self._metrics.add(metrics.to_json({**about, **line}) + "\n")) and first:
            held = f"{self._metrics.path} cannot be written ({error.strerror})"
            _kdcore.warning("%s: its lines are buffered, and written with the next one", held)

    @hookimpl
    def kdcore_checkpoint(self, run: Run, step: int, path: Path) -> None:
        """End the run if a held record still cannot be written."""
        for file in self._files():
            if file.held and (error := file.flush()):
                raise RunError(
                    f"{file.path} cannot be written ({error.strerror}), so the run ends after its "
                    f"checkpoint of step {step}: check that the disk works and is writable; the "
                    "same command resumes"
                )

    def _files(self) -> list[Growing]:
        log = [self._log.file] if self._log is not None else []
        growing = [file for file in (self._metrics, self._rollouts) if file is not None]
        return [*growing, *log]

    def _note(self, text: str) -> None:
        """A line in log.txt only."""
        if self._log is not None:
            about = {"msg": text, "levelno": logging.INFO, "levelname": "INFO"}
            self._log.handle(logging.makeLogRecord(about))

    @hookimpl
    def kdcore_run_end(self, run: Run, error: BaseException | None) -> None:
        """Close the files; held lines of metrics.jsonl go to the fallback file next to it."""
        why = f": {type(error).__name__}: {error}" if error else ""
        self._note(f"ends after step {run.step} of {run.steps}{why}")
        if self._metrics is not None and self._metrics.held and self._metrics.flush():
            with suppress(OSError):
                _rest(self._metrics.path).write_text(self._metrics.held, encoding="utf-8")
        for file in self._files():
            file.close()
        if self._log is not None:
            logging.getLogger("kdcore").removeHandler(self._log)
        self._metrics, self._log, self._rollouts = None, None, None


@hookimpl
def kdcore_loggers() -> Sequence[type[Logger]]:
    """The logger `files`."""
    return [Files]
