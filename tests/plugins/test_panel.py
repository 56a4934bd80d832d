"""The panel: the frame at many widths, odd values, plain lines, and a terminal left as it was."""

import io
import logging
import math
import re
import sys
from contextlib import contextmanager

import pytest
from kdcore_panel import Panel, kdcore_loggers
from kdcore_panel.frame import Frame
from kdcore_panel.pace import Pace
from kdcore_panel.replay import recorded
from kdcore_panel.views import Frames, Lines
from recorded_runs import a_record, drawn, expect, fake_run, keep_run, some_lines, some_scores
from rich.console import Console

from kdcore import formatting
from kdcore.runs.reading.facts import component, facts_of_folder, facts_of_run, spelt
from kdcore.runs.reading.history import POINTS, History, Series, lower_is_better
from kdcore.runs.reading.summary import Summary, rows


def a_frame(folder="runs/quickstart.kd-1a2b3c4d", until=200, **changes):
    run = fake_run(folder, **changes)
    pace = Pace.of(run.steps, run.epochs, 0, 0.0, 0.0)
    pace.reach(until, until / 4)
    lines = some_lines(until) if until else []
    return Frame(facts_of_run(run), History(lines), pace, until / 4 + 1, 1.5 * 2**30)


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_the_frame(width):
    expect(f"panel_{width}", drawn(a_frame(), width))


def test_the_frame_before_the_first_step():
    expect("panel_start_80", drawn(a_frame(until=0), 80))


@pytest.mark.parametrize("width", [20, 30, 40, 41, 57, 72, 73, 100, 200])
def test_no_line_is_wider_than_the_terminal(width):
    lines = drawn(a_frame(), width).splitlines()
    assert {len(line) for line in lines} == {width}


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("height", [10, 14, 20, 24, 30, 50])
def test_the_frame_fits_the_height(width, height):
    lines = drawn(a_frame(), width, height).splitlines()
    assert len(lines) <= height
    assert lines[-1].startswith("╰") and any("left 0:24" in line for line in lines)
    assert any("loss  " in line for line in lines)
    assert any("student" in line for line in lines) or height < 25


def test_curves_without_room_are_counted():
    assert re.search(r"and \d more", drawn(a_frame(), 80, 10))


def test_odd_values_are_shown():
    frame = a_frame(until=0)
    frame.history.add({"step": 10, "loss": math.nan, "loss/ce": math.inf, "loss/kl": -math.inf})
    frame.history.add({"step": 20, "loss": 0.0, "loss/ce": 1e-9, "loss/kl": 1e12})
    frame.history.add(
        {"step": 20, "eval/nll": None, "eval/": 1.0, "eval/[bold]x[/]": "[red]\x1b[0m"}
    )
    expect("panel_odd_80", drawn(frame, 80))


def test_a_run_without_epochs_terms_or_facts_is_shown():
    run = fake_run("runs/x-1", epochs=0.0, objective="", steps=0)
    run.recipe.table = {}
    frame = Frame(facts_of_run(run), History(), Pace.of(0, 0.0, 0, 0.0, 0.0))
    text = drawn(frame, 80)
    assert "step 0/0" in text and "epoch" not in text


def test_the_summary():
    facts, history = facts_of_run(fake_run("runs/quickstart.kd-1a2b3c4d")), History(some_lines())
    expect("panel_summary_80", drawn(Summary(facts, history), 80))
    expect("panel_summary_40", drawn(Summary(facts, history), 40))


def test_the_frame_of_a_recorded_run(tmp_path):
    folder = keep_run(tmp_path, "quickstart.kd-1a2b3c4d")
    text = drawn(recorded(folder, 0.5), 80)
    assert "step 150/300" in text and "epoch 2/3" in text and "left 0:37" in text
    assert "0.5 ce + 0.5 kl(temperature 2)" in text


# ---- curves -------------------------------------------------------------------


def test_a_long_run_keeps_few_points_and_exact_ends():
    series = Series("loss")
    for step in range(1, 100_001):
        series.add(step, -step)
    assert POINTS / 2 <= len(series.points) <= POINTS
    assert (series.first, series.now, series.best) == (-1, -100_000, -100_000)
    assert "".join(series.course(8, 100_000)) == "█▇▆▅▄▃▂▁"


def test_best_is_lowest_or_highest_as_the_name_says():
    assert lower_is_better("loss/kl") and lower_is_better("eval/bits_per_byte")
    assert not lower_is_better("eval/agreement") and not lower_is_better("eval/blimp")
    rising, falling = Series("eval/facts"), Series("eval/nll")
    for step, value in enumerate((math.nan, 2.0, 3.0, 1.0)):
        rising.add(step, value)
        falling.add(step, value)
    assert (rising.best, rising.best_step) == (3.0, 2)
    assert (falling.best, falling.best_step) == (1.0, 3)


def test_a_course_spans_the_steps_so_far():
    series = Series("loss")
    for step, value in ((10, 8.0), (20, math.nan), (40, 1.0)):
        series.add(step, value)
    assert series.course(4, 40) == ["█", "!", "", "▁"]
    assert Series("loss").course(2, 10) == ["", ""]


def test_a_curve_of_one_value_lies_low():
    series = Series("loss")
    series.add(1, 2.0)
    series.add(2, 2.0)
    assert series.course(2, 2) == ["▁", "▁"]


# ---- where a run is ------------------------------------------------------------


def test_remaining_time_follows_the_pace():
    pace = Pace.of(100, 4.0, 20, 60.0, 1000.0)
    assert pace.remaining(1000.0) is None and pace.elapsed(1010.0) == 70
    pace.begin(21, 1005.0)
    pace.begin(22, 1007.0)
    assert pace.remaining(1007.0) == 2 * 79
    assert pace.remaining(1008.0) == 2 * 79 - 1
    assert pace.remaining(9999.0) == 0


@pytest.mark.parametrize(
    ("step", "epoch", "in_epoch"),
    [(0, 1, (0, 10)), (10, 1, (10, 10)), (11, 2, (1, 11)), (21, 2, (11, 11)), (25, 3, (4, 10))],
)
def test_an_epoch_need_not_be_whole_steps(step, epoch, in_epoch):
    pace = Pace.of(42, 4.0, step, 0.0, 0.0)  # 10.5 steps an epoch
    assert (pace.epoch(), pace.epochs(), pace.in_epoch()) == (epoch, 4, in_epoch)


def test_part_of_an_epoch():
    pace = Pace.of(30, 0.3, 10, 0.0, 0.0)
    assert (pace.epoch(), pace.epochs(), pace.in_epoch()) == (1, 1, (10, 30))


# ---- words ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0.0000"),
        (0.12345, "0.1235"),
        (9.99999, "10.000"),
        (54.5982, "54.598"),
        (123.456, "123.46"),
        (4321.0, "4,321.0"),
        (123456.0, "123,456"),
        (1e9, "1.0e+09"),
        (5e-5, "5.0e-05"),
        (-2.5, "-2.5000"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (None, "-"),
    ],
)
def test_values_are_short(number, text):
    assert formatting.value(number) == text


def test_other_numbers():
    assert [formatting.duration(s) for s in (0, 65, 3661, 90061, None, math.nan)] == [
        *("0:00", "1:05", "1:01:01", "1d 01:01", "-", "-")
    ]
    assert [formatting.count(n) for n in (950, 12345, 1.234e6, 5e9, math.nan)] == [
        *("950", "12,345", "1.23M", "5.00B", "nan")
    ]
    assert [formatting.size(n) for n in (2**29, 3 * 2**30)] == ["512 MiB", "3.0 GiB"]
    assert formatting.plain("a\x1b[1m\tb\r\n c\u202e\x00") == r"a\x1b[1m b c\u202e\x00"
    assert formatting.plain("\x1c\xa0é\ud800 \u200d\r") == "\\x1c é\\ud800 \u200d\\r"


def test_facts_in_a_line():
    assert component({"use": "hf", "model": "@teacher"}) == "@teacher"
    assert component({"use": "hf", "model": "runs/q.teacher-1a2b/final"}) == "q.teacher-1a2b"
    members = [{"use": "hf", "model": "@gpt2"}, {"use": "hf", "model": "@llama"}]
    said = component({"use": "ensemble", "average": "logits", "members": members})
    assert said == "ensemble(@gpt2, @llama)"
    assert spelt("loss = 1 * a\n     + 2 * b") == "1 * a\n+ 2 * b"


def test_facts_of_a_folder_that_lacks_its_recipe(tmp_path):
    assert facts_of_folder(tmp_path / "rho-1a2b").rows() == [("student", "?")]


# ---- on and off the terminal ----------------------------------------------------


def tell(view, clock, *, after_start=lambda: None, error=None):
    """A short run: two epochs of ten steps."""
    view.start()
    after_start()
    view.scores(0, some_scores(0))
    for step in range(1, 21):
        view.step(step)
        clock.now += 2.0
        if step % 5 == 0:
            view.record(a_record(step))
        if step % 10 == 0:
            view.scores(step, some_scores(step))
    view.end(error)


def a_short_run(folder, **changes):
    return fake_run(folder, steps=20, epochs=2.0, **changes)


def test_plain_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clock, console = Clock(), Console(file=io.StringIO(), width=80)
    tell(Lines(console, a_short_run("runs/quickstart.kd-1a2b3c4d"), clock), clock)
    expect("panel_lines", console.file.getvalue())


class Terminal(io.StringIO):
    """Takes itself for a terminal."""

    def isatty(self):
        return True


@contextmanager
def terminal():
    """A console on standard error; afterwards nothing is redirected."""
    with pytest.MonkeyPatch.context() as patch:
        stream = Terminal()
        patch.setattr(sys, "stderr", stream)
        patch.setenv("TERM", "xterm")
        yield Console(stderr=True, force_terminal=True, width=80, height=40, color_system=None)
        assert sys.stderr is stream


def test_on_a_terminal_messages_and_epochs_stand_above_the_frame(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger, clock = logging.getLogger("kdcore.test"), Clock()
    with terminal() as console:
        stream, handler = sys.stderr, logging.StreamHandler()
        logger.addHandler(handler)
        view = Frames(console, a_short_run("runs/quickstart.kd-1a2b3c4d"), clock)
        tell(view, clock, after_start=lambda: logger.warning("the teacher is slow"))
        logger.removeHandler(handler)
    said = stream.getvalue()
    assert "the teacher is slow\n" in said
    assert "step  0/20     0:00  nll 4.0000" in said
    assert "epoch 1/2      0:20  loss 4.0" in said and "epoch 2/2      0:40  loss" in said
    assert said.rstrip().endswith("quickstart.kd-1a2b3c4d")
    assert handler.stream is stream


def test_a_failed_run_leaves_its_last_frame(tmp_path):
    clock = Clock()
    with terminal() as console:
        view = Frames(console, a_short_run(tmp_path / "quickstart.kd-1a2b3c4d"), clock)
        tell(view, clock, error=RuntimeError("out of memory"))
        assert sys.stderr.getvalue().rstrip().splitlines()[-1].startswith("╰")


def test_many_epochs_make_few_lines(tmp_path):
    clock, run = Clock(), fake_run(tmp_path, steps=200, epochs=100.0)
    with terminal() as console:
        view = Frames(console, run, clock)
        view.start()
        for step in range(1, 201):
            view.step(step)
            view.record(a_record(step))
        view.end(None)
        assert len(re.findall(r"/100 +0:00  loss", sys.stderr.getvalue())) == 20


def test_a_continued_run_remembers(tmp_path):
    folder = keep_run(tmp_path, "quickstart.kd-1a2b3c4d")
    view = Lines(Console(file=io.StringIO()), fake_run(folder, step=100), Clock())
    history = view.frame.history
    assert (history.step, history.series["eval/nll"].now) == (100, some_scores(100)["nll"])
    assert view.frame.pace.elapsed(0.0) == 25.0


# ---- the logger -------------------------------------------------------------------


@pytest.fixture
def loud():
    logger = logging.getLogger("kdcore")
    level = logger.level
    logger.setLevel(logging.INFO)
    yield logger
    logger.setLevel(level)


def test_lines_where_standard_error_is_no_terminal(tmp_path, loud, capsys):
    panel = Panel()
    panel.kdcore_run_start(a_short_run(tmp_path))
    panel.kdcore_step_start(1)
    panel.kdcore_log(a_record(1))
    panel.kdcore_scores(1, some_scores(1))
    panel.kdcore_run_end(None)
    out, err = capsys.readouterr()
    assert out == "" and "evaluation  nll" in err and "done after" in err


@pytest.mark.parametrize("width", [50, 100])
def test_parts_of_a_score_are_reported_on_request(tmp_path, width):
    parts = {"blimp": 0.75, "blimp/agreement": 0.5, "blimp/islands": 1.0, "sample/1": "Once"}
    frame = a_frame(until=0)
    frame.history.add({"step": 200, **{f"eval/{name}": value for name, value in parts.items()}})
    shown = drawn(frame, width) + drawn(Summary(frame.facts, frame.history), width)
    assert shown.count("blimp") == 2 and shown.count("sample/1") == 2
    in_full = drawn(Summary(frame.facts, frame.history, with_facts=True), width)
    assert "blimp/agreement" in in_full and "blimp/islands" in in_full
    console = Console(file=io.StringIO(), width=200)
    Lines(console, fake_run(tmp_path), Clock()).scores(200, parts)
    (scores, text) = console.file.getvalue().splitlines()
    assert scores.endswith("evaluation  blimp 0.7500") and text.endswith("sample/1: Once")


@pytest.mark.parametrize("quiet", [True, False])
def test_nothing_when_quiet_or_not_the_first_process(tmp_path, loud, capsys, quiet):
    loud.setLevel(logging.WARNING if quiet else logging.INFO)
    panel = Panel()
    panel.kdcore_run_start(a_short_run(tmp_path, main=quiet))
    panel.kdcore_step_start(1)
    panel.kdcore_log(a_record(1))
    panel.kdcore_run_end(None)
    assert capsys.readouterr() == ("", "")


def test_a_panel_that_fails_gives_the_terminal_back(tmp_path, loud):
    panel = Panel()
    with terminal():
        before = sys.stderr
        panel.kdcore_run_start(a_short_run(tmp_path))
        assert sys.stderr is not before
        with pytest.raises(AttributeError):
            panel.kdcore_log(None)
        assert sys.stderr is before
        panel.kdcore_run_end(None)


def test_hook_kdcore_loggers():
    assert kdcore_loggers() == [Panel]
    assert Panel.always


def test_terms_of_older_runs_are_another_curve():
    history = History([{"step": 1, "loss": 1.0, "loss/ce": 0.5, "loss/kl": 0.5}])
    history.add({"step": 2, "loss": 1.0, "loss/ce": 1.0, "loss/kl": 1.0, "schema": 2})
    shown = {label.strip(): series.now for label, series in rows(history)}
    assert shown == {"loss": 1.0, "ce": 1.0, "kl": 1.0, "weighted ce": 0.5, "weighted kl": 0.5}
