"""The run folder's record: metrics.jsonl, one JSON object a line, and log.txt.

Every line has `stage`, `step`, `tokens`, `time` (seconds since 1970) and `elapsed` (seconds of
running, over all continuations). Training lines add `loss`, for each term `loss/<label>`, its mean
in nats a token, and `weight/<label>` (`loss` is the sum of their products), `lr`, `kept`,
`tokens_per_second`, `selection/...`, now and then `gradient/<label>` (each term's share of the
gradient), and `schema`, which is 2: lines without it are older, and have the weight in their
`loss/<label>`. Evaluation lines add `eval/<name>`. A value that is not finite is written as null,
because JSON has no other word for it. Lines of `kdcore eval` have `again` (true) and stand at the
end; what a run measured itself is not changed by them.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path

from kdcore import Logger, Record, Run, RunError, component, hookimpl, redact_secrets

Line = dict[str, float | str | None]
"""One line of metrics.jsonl."""
AGAIN = "again"
"""The key of lines that were measured after the run."""

SCHEMA = 2
"""What the keys of a training line mean: see above."""

METRICS = "metrics.jsonl"
LOG = "log.txt"
_kdcore = logging.getLogger("kdcore")


def training_line(record: Record) -> Line:
    """A record under the keys of metrics.jsonl."""
    return {
        "step": record.step,
        "tokens": record.tokens,
        "loss": record.loss,
        **{f"loss/{label}": value for label, value in record.terms.items()},
        **{f"weight/{label}": value for label, value in record.weights.items()},
        "schema": SCHEMA,
        "lr": record.lr,
        "kept": record.kept,
        "tokens_per_second": record.tokens_per_second,
        **{f"selection/{name}": value for name, value in record.selection.items()},
        **{f"gradient/{label}": share for label, share in record.gradient.items()},
        **{f"teacher/{name}": value for name, value in record.teacher.items()},
    }


def evaluation_line(step: int, scores: Mapping[str, float | str]) -> Line:
    """Scores under the keys of metrics.jsonl; texts stay texts."""
    said = {
        name: value if isinstance(value, str) else float(value) for name, value in scores.items()
    }
    return {"step": step, **{f"eval/{name}": value for name, value in said.items()}}


def to_json(line: Mapping[str, float | str | None]) -> str:
    """The line as strict JSON: values that are not finite become null."""
    return json.dumps({key: _finite(value) for key, value in line.items()}, allow_nan=False)


def _finite(value: float | str | None) -> float | str | None:
    return value if not isinstance(value, float) or math.isfinite(value) else None


def read_metrics(folder: Path) -> list[Line]:
    """The whole lines of a run's metrics.jsonl; none where the file is missing.

    What was measured again after the run is left out, unless the run had not measured it itself.
    """
    lines = [line for _, line in _whole_lines(folder / METRICS)]
    own = {key for line in lines if AGAIN not in line for key in line}
    return [
        {key: each for key, each in line.items() if "/" not in key or key not in own}
        if AGAIN in line
        else line
        for line in lines
    ]


def latest_values(folder: Path, wanted: Collection[str]) -> Line:
    """The last value of each key, read from the end until all that is wanted was met.

    What was measured again after the run stands back behind the run's own.
    """
    path, found, again = folder / METRICS, Line(), Line()
    for text in reversed(path.read_text("utf-8", "replace").splitlines() if path.is_file() else []):
        line = _parsed(text)
        if AGAIN in line:
            again = {**line, **again}
            continue
        found = {**line, **found}
        if line and found.keys() >= set(wanted):
            break
    return {**again, **found}


def append_again(folder: Path, step: int, scores: Mapping[str, float | str], sets: str) -> bool:
    """Add what was measured after a run to its record; False where it keeps none.

    `sets` is what the command line changed, as typed. The file keeps its time of change: the run
    was not busy.
    """
    path = folder / METRICS
    if not path.is_file() or path.is_symlink():  # nothing is written through a stranger's link
        return False
    before, last = path.stat(), latest_values(folder, ("stage", "tokens"))
    about: Line = {"stage": last.get("stage"), "step": step, "tokens": last.get("tokens")}
    about |= {"time": round(time.time(), 3), AGAIN: True, **({"set": sets} if sets else {})}
    text = to_json({**about, **evaluation_line(step, scores)}) + "\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return True


def _whole_lines(path: Path) -> Iterator[tuple[str, Line]]:
    """Text and content of each line, without those that a crash left torn."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            line = _parsed(text)
            if line and text.endswith("\n"):
                yield text, line


def _parsed(text: str) -> Line:
    """The line's content; nothing where it is torn."""
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else {}


def cut_after(path: Path, step: int) -> list[Line]:
    """Drop torn lines and those of later steps, in one atomic replacement; what stays.

    Lines that an earlier start could only write beside the file come back into it.
    """
    if not path.is_file() and not _rest(path).is_file():
        return []
    lines = [*_whole_lines(path), *_whole_lines(_rest(path))]
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
    """Where lines go that the file itself did not take."""
    return path.with_name(f"{path.stem}.rest{path.suffix}")


def _step(line: Line) -> int:
    step = line["step"]
    assert isinstance(step, int)
    return step


def escaped(text: str) -> str:
    """The text with its control characters written out, as `\\x07`, but for line ends and tabs."""
    return "".join(c if _is_shown(c) else c.encode("unicode_escape").decode() for c in text)


def _is_shown(letter: str) -> bool:
    # The two joiners between letters are part of how some languages and pictures are written.
    wanted = letter in "\n\t\u200c\u200d" or unicodedata.category(letter) == "Zs"
    return wanted or letter.isprintable()


class Growing:
    """A file that texts are added to. What cannot be written is held, and written with the next."""

    def __init__(self, path: Path) -> None:
        self.path, self.held = path, ""
        self._file: FileIO | None = None
        self._whole = 0  # bytes before what is being written

    def add(self, text: str) -> OSError | None:
        """Write it behind the others; why it is held where the machine refuses."""
        self.held += text
        return self.flush()

    def flush(self) -> OSError | None:
        """Write what is held; the machine's refusal."""
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
                self._file.truncate(self._whole)  # what the refusal left of a text
        self._whole = os.fstat(self._file.fileno()).st_size
        rest = content
        while rest:
            rest = rest[self._file.write(rest) :]
        self._whole += len(content)

    def close(self) -> None:
        """Let go of the file; it is opened again where something is added."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        self._file = None


class _Log(logging.Handler):
    """Messages into a growing file. Never a traceback: what cannot be written is held."""

    def __init__(self, file: Growing) -> None:
        super().__init__()
        self.file = file
        self.setFormatter(_Escaping("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """One message."""
        self.file.add(self.format(record) + "\n")


class _Escaping(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact_secrets(escaped(super().format(record)))


@component
class Files(Logger):
    """Writes metrics.jsonl and log.txt into the run folder.

    What the machine refuses to write is held and written with the next record. If a checkpoint
    finds something held that cannot be written now either, the run ends: it could only be lost.
    """

    name = "files"
    always = True

    def __post_init__(self) -> None:
        self._metrics: Growing | None = None
        self._log: _Log | None = None
        self._resumed_at, self._known = -1, frozenset[str]()

    @hookimpl
    def kdcore_run_start(self, run: Run) -> None:
        """Cut what a crash left beyond the checkpoint, and open the files."""
        if not run.main:
            return
        before = cut_after(run.folder / METRICS, run.step)
        self._resume(before, run.step)
        self._metrics = Growing(run.folder / METRICS)
        self._log = _Log(Growing(run.folder / LOG))
        logging.getLogger("kdcore").addHandler(self._log)
        self._note(f"begins after step {run.step} of {run.steps}")

    def _resume(self, before: Sequence[Line], step: int) -> None:
        self._resumed_at = step
        self._known = frozenset(key for line in before if line["step"] == step for key in line)
        elapsed = max((float(line.get("elapsed") or 0) for line in before), default=0.0)
        self._started = time.monotonic() - elapsed

    @hookimpl
    def kdcore_log(self, run: Run, record: Record) -> None:
        """One training line."""
        self._write(run, training_line(record))

    @hookimpl
    def kdcore_scores(self, run: Run, step: int, scores: Mapping[str, float | str]) -> None:
        """One evaluation line; what the file has from before the continuation is not repeated."""
        if step == self._resumed_at:
            scores = {name: v for name, v in scores.items() if f"eval/{name}" not in self._known}
        if scores:
            self._write(run, evaluation_line(step, scores))

    def _write(self, run: Run, line: Line) -> None:
        if self._metrics is None:
            return
        about: Line = {"stage": run.recipe.name, "step": line["step"], "tokens": run.tokens}
        about["time"] = round(time.time(), 3)
        about["elapsed"] = round(time.monotonic() - self._started, 3)
        first = not self._metrics.held
        if (error := self._metrics.add(to_json({**about, **line}) + "\n")) and first:
            held = f"{self._metrics.path} cannot be written ({error.strerror})"
            _kdcore.warning("%s: its lines are held, and written with the next one", held)

    @hookimpl
    def kdcore_checkpoint(self, run: Run, step: int, path: Path) -> None:
        """End the run if something is held that still cannot be written."""
        for file in self._files():
            if file.held and (error := file.flush()):
                raise RunError(
                    f"{file.path} cannot be written ({error.strerror}), so the run ends after its "
                    f"checkpoint of step {step}: see whether that disk is well and may be written "
                    "on, and the same command continues"
                )

    def _files(self) -> list[Growing]:
        log = [self._log.file] if self._log is not None else []
        return [*([self._metrics] if self._metrics is not None else []), *log]

    def _note(self, text: str) -> None:
        """A line in log.txt alone."""
        if self._log is not None:
            about = {"msg": text, "levelno": logging.INFO, "levelname": "INFO"}
            self._log.handle(logging.makeLogRecord(about))

    @hookimpl
    def kdcore_run_end(self, run: Run, error: BaseException | None) -> None:
        """Close the files; lines of metrics.jsonl that are held still go into a file beside it."""
        why = f": {type(error).__name__}: {error}" if error else ""
        self._note(f"ends after step {run.step} of {run.steps}{why}")
        if self._metrics is not None and self._metrics.held and self._metrics.flush():
            with suppress(OSError):
                _rest(self._metrics.path).write_text(self._metrics.held, encoding="utf-8")
        for file in self._files():
            file.close()
        if self._log is not None:
            logging.getLogger("kdcore").removeHandler(self._log)
        self._metrics, self._log = None, None


@hookimpl
def kdcore_loggers() -> Sequence[type[Logger]]:
    """The one logger of this file."""
    return [Files]
