"""metrics.jsonl and log.txt: what is written, and what a continuation leaves of it."""

import errno
import io
import json
import logging
import math
import os
from pathlib import Path

import pytest
from kdcore_files import Files, cut_after, kdcore_loggers
from recorded_runs import a_record, fake_run, keep_run, some_scores

from kdcore import RunError
from kdcore.plugin.manager import Events
from kdcore.runs.reading.metrics import METRICS, latest_values, read_metrics


@pytest.fixture
def files():
    made = Files()
    yield made
    made.kdcore_run_end(fake_run("."), None)


def steps_and_kinds(folder):
    return [(line["step"], "loss" in line) for line in read_metrics(folder)]


def test_every_line_says_where_it_stands_and_what_was_measured(tmp_path, files):
    run = fake_run(tmp_path)
    files.kdcore_run_start(run)
    files.kdcore_scores(run, 0, some_scores(0))
    run.tokens = 9000
    files.kdcore_log(run, a_record(10))
    evaluation, training = (json.loads(t) for t in (tmp_path / METRICS).read_text().splitlines())
    for line, tokens in ((evaluation, 0), (training, 9000)):
        assert (line["stage"], line["tokens"]) == ("kd", tokens)
        assert line["time"] > 1.7e9 and line["elapsed"] >= 0
    assert evaluation["eval/story"] == some_scores(0)["story"]
    assert {key for key in evaluation if key.startswith("eval/")} == {
        f"eval/{name}" for name in some_scores(0)
    }
    record = a_record(10)
    assert training["loss"] == record.loss
    both = (
        training["loss/ce"] * training["weight/ce"],
        training["loss/kl"] * training["weight/kl"],
    )
    assert sum(both) == pytest.approx(record.loss)
    assert training["schema"] == 2 and "schema" not in evaluation
    assert training["selection/threshold"] == 0.4
    assert {"lr", "kept", "tokens_per_second"} <= training.keys()


def test_what_is_not_finite_becomes_null(tmp_path, files):
    run = fake_run(tmp_path)
    files.kdcore_run_start(run)
    files.kdcore_log(run, a_record(10, loss=math.nan, terms={"ce": math.inf}))
    text = (tmp_path / METRICS).read_text()
    line = json.loads(text, parse_constant=pytest.fail)
    assert (line["loss"], line["loss/ce"]) == (None, None)


def test_a_line_is_whole_on_disk_at_once(tmp_path, files):
    run = fake_run(tmp_path)
    files.kdcore_run_start(run)
    files.kdcore_log(run, a_record(10))
    assert (tmp_path / METRICS).read_text().endswith("}\n")


def test_continuing_cuts_later_and_torn_lines(tmp_path, files):
    folder = keep_run(tmp_path, "a-1")
    with (folder / METRICS).open("a") as file:
        file.write('{"step": 100, "lo')
    files.kdcore_run_start(fake_run(folder, step=100))
    assert max(step for step, _ in steps_and_kinds(folder)) == 100
    files.kdcore_log(fake_run(folder), a_record(110))
    assert steps_and_kinds(folder)[-3:] == [(100, True), (100, False), (110, True)]


def test_an_evaluation_at_the_checkpoint_is_not_kept_twice(tmp_path, files):
    folder = keep_run(tmp_path, "a-1")
    run = fake_run(folder, step=100)
    files.kdcore_run_start(run)
    before = read_metrics(folder)
    files.kdcore_scores(run, 100, some_scores(100))
    assert read_metrics(folder) == before
    files.kdcore_scores(run, 100, {**some_scores(100), "blimp": 0.6})
    assert read_metrics(folder)[-1].keys() >= {"eval/blimp"}
    assert "eval/nll" not in read_metrics(folder)[-1]


def test_a_run_without_a_checkpoint_starts_its_metrics_over(tmp_path, files):
    folder = keep_run(tmp_path, "a-1")
    files.kdcore_run_start(fake_run(folder))
    assert steps_and_kinds(folder) == [(0, False)]


def test_elapsed_and_cpu_seconds_continue_where_they_were(tmp_path, files):
    folder = keep_run(tmp_path, "a-1")
    run = fake_run(folder, step=200)
    files.kdcore_run_start(run)
    files.kdcore_log(run, a_record(210))
    assert 50 <= read_metrics(folder)[-1]["elapsed"] < 60
    assert 100 <= read_metrics(folder)[-1]["cpu_seconds"] < 110


def test_cutting_what_needs_no_cut_touches_nothing(tmp_path):
    path = keep_run(tmp_path, "a-1") / METRICS
    before = path.stat().st_mtime_ns, path.stat().st_ino
    cut_after(path, 300)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    assert [each.name for each in path.parent.iterdir() if each.suffix == ".cut"] == []


def test_messages_go_to_log_txt_while_the_run_lasts(tmp_path, files):
    logger = logging.getLogger("kdcore")
    before = list(logger.handlers)
    files.kdcore_run_start(fake_run(tmp_path))
    logger.warning("the teacher is slow")
    files.kdcore_run_end(fake_run(tmp_path, step=7), RuntimeError("out of memory"))
    logger.warning("after the run")
    said = (tmp_path / "log.txt").read_text()
    assert "INFO begins after step 0 of 300\n" in said
    assert "INFO ends after step 7 of 300: RuntimeError: out of memory\n" in said
    assert "WARNING the teacher is slow" in said and "after the run" not in said
    assert logger.handlers == before


def test_log_txt_holds_no_control_characters(tmp_path, files, monkeypatch):
    # Half a pair cannot be sent from one of pytest's workers to the other.
    monkeypatch.setattr(logging.getLogger("kdcore"), "propagate", False)
    monkeypatch.setattr(logging.getLogger("kdcore"), "handlers", [])
    files.kdcore_run_start(fake_run(tmp_path))
    logging.getLogger("kdcore").warning("bell\x07 red\x1b[31m\n\thalf a pair\ud800")
    files.kdcore_run_end(fake_run(tmp_path), None)
    said = (tmp_path / "log.txt").read_text()
    assert "WARNING bell\\x07 red\\x1b[31m\n\thalf a pair\\ud800\n" in said


def test_other_processes_write_nothing(tmp_path, files):
    run = fake_run(tmp_path, main=False)
    files.kdcore_run_start(run)
    files.kdcore_log(run, a_record(10))
    files.kdcore_scores(run, 10, some_scores(10))
    assert list(tmp_path.iterdir()) == []


def test_the_engine_can_call_it(tmp_path, files):
    events = Events(str)
    run = fake_run(tmp_path)
    with events.listening([files]):
        events.emit("kdcore_run_start", {"run": run})
        events.emit("kdcore_log", {"run": run, "record": a_record(10)})
        events.emit("kdcore_scores", {"run": run, "step": 10, "scores": some_scores(10)})
        events.emit("kdcore_run_end", {"run": run, "error": None})
    assert steps_and_kinds(tmp_path) == [(10, True), (10, False)]


class Disk:
    """Refuses what is written to files of these names while it is broken, after a few bytes."""

    def __init__(self, monkeypatch, *names):
        self.names, self.broken = names, False
        opened = Path.open

        def open_(path, mode="r", *arguments, **options):
            writes = path.name in self.names and mode != "r" and "w" not in mode
            return _Torn(self, path, mode) if writes else opened(path, mode, *arguments, **options)

        monkeypatch.setattr(Path, "open", open_)


class _Torn(io.FileIO):
    def __init__(self, disk, path, mode):
        super().__init__(path, mode)
        self.disk, self.path = disk, path

    def write(self, content):
        if self.disk.broken:
            super().write(content[:7])
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self.path))
        return super().write(content)


def records_of(folder):
    return [line["step"] for line in read_metrics(folder)]


def test_what_cannot_be_written_is_held_and_written_later(tmp_path, files, monkeypatch, caplog):
    disk, run = Disk(monkeypatch, METRICS), fake_run(tmp_path)
    files.kdcore_run_start(run)
    files.kdcore_log(run, a_record(10))
    disk.broken = True
    files.kdcore_log(run, a_record(20))
    files.kdcore_log(run, a_record(30))
    assert caplog.text.count("its lines are buffered") == 1
    disk.broken = False
    files.kdcore_log(run, a_record(40))
    files.kdcore_checkpoint(run, 40, tmp_path)
    assert records_of(tmp_path) == [10, 20, 30, 40]
    assert len((tmp_path / METRICS).read_text().splitlines()) == 4


def test_a_checkpoint_that_finds_lines_held_is_the_last(tmp_path, files, monkeypatch):
    disk, run = Disk(monkeypatch, METRICS), fake_run(tmp_path)
    files.kdcore_run_start(run)
    files.kdcore_log(run, a_record(10))
    disk.broken = True
    files.kdcore_log(run, a_record(20))
    with pytest.raises(RunError, match=r"metrics.jsonl cannot be written .*checkpoint of step 20"):
        files.kdcore_checkpoint(run, 20, tmp_path)
    files.kdcore_run_end(run, RunError("so"))
    assert records_of(tmp_path) == [10]
    disk.broken = False
    files.kdcore_run_start(fake_run(tmp_path, step=20))
    assert records_of(tmp_path) == [10, 20]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", METRICS]


def test_a_log_that_cannot_be_written_shows_no_traceback(tmp_path, files, monkeypatch, capfd):
    disk, run = Disk(monkeypatch, "log.txt"), fake_run(tmp_path)
    disk.broken = True
    files.kdcore_run_start(run)
    logging.getLogger("kdcore").warning("the teacher is slow")
    with pytest.raises(RunError, match=r"log.txt cannot be written \(Input/output error\)"):
        files.kdcore_checkpoint(run, 20, tmp_path)
    disk.broken = False
    files.kdcore_checkpoint(run, 20, tmp_path)
    assert "the teacher is slow" in (tmp_path / "log.txt").read_text()
    assert "Traceback" not in capfd.readouterr().err


def test_a_refusal_to_open_is_held_too(tmp_path, files, monkeypatch):
    (tmp_path / METRICS).mkdir()
    run = fake_run(tmp_path)
    files.kdcore_run_start(run)
    files.kdcore_log(run, a_record(10))
    with pytest.raises(RunError, match="Is a directory"):
        files.kdcore_checkpoint(run, 10, tmp_path)
    (tmp_path / METRICS).rmdir()
    files.kdcore_checkpoint(run, 10, tmp_path)
    assert records_of(tmp_path) == [10]


def test_latest_values_reads_from_the_end(tmp_path):
    folder = keep_run(tmp_path, "a-1")
    found = latest_values(folder, ("loss", "eval/nll"))
    assert (found["step"], found["loss"]) == (300, a_record(300).loss)
    assert found["eval/nll"] == some_scores(300)["nll"]
    assert latest_values(tmp_path, ("loss",)) == {}


def test_hook_kdcore_loggers():
    assert kdcore_loggers() == [Files]
    assert Files.always
