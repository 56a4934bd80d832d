"""The panel in a terminal: at every size, resized while it runs, and beside what others write."""

import logging
import os
import re
import sys

import pytest
from kdcore_panel.views import Frames
from recorded_runs import a_record, fake_run, some_scores
from rich.console import ConsoleDimensions
from terminals import Reflowing, Screen, terminal

from kdcore.terminal.bars import Bar
from kdcore.terminal.display import give_back, show_live

COLUMNS, LINES = (60, 80, 120, 200), (14, 24, 50)
SIZES = [(columns, lines) for columns in COLUMNS for lines in LINES]
SCORES = ("nll", "perplexity", "bits_per_byte", "agreement")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def resized(stream, console, columns, lines):
    """The window's size changes; the program hears of it at its next refresh."""
    stream.screen.resize(lines, columns)
    console.size = ConsoleDimensions(columns, lines)


def check(screen):
    """One whole frame with nothing below it, and above it nothing that was part of one."""
    lines = screen.shown()
    [top] = [n for n, line in enumerate(lines) if line.startswith("╭")]
    [foot] = [n for n, line in enumerate(lines) if line.startswith("╰")]
    frame = lines[top : foot + 1]
    assert {len(line) for line in frame} == {screen.columns - 2}, frame
    assert all(line[0] + line[-1] == "││" for line in frame[1:-1])
    assert not any(lines[foot + 1 :])
    assert not re.search("[│╭╰╮╯━┤]", "".join(lines[:top]))
    assert any("left" in line for line in frame) and any(" loss " in line for line in frame)
    return lines[:top]


def drive(stream, console, view, sizes=(), steps=40):
    """A run of four epochs that is shown at one size after the other."""
    clock, logger, sizes = view.clock, logging.getLogger("kdcore.test"), list(sizes)
    handler = logging.StreamHandler()  # on what standard error was before the panel
    logger.addHandler(handler)
    view.start()
    display = view._shown._display
    view.scores(0, some_scores(0))
    for step in range(1, steps + 1):
        view.step(step)
        clock.now += 2.0
        view.record(a_record(step))
        if step * 4 % steps == 0:
            view.scores(step, some_scores(step))
        if step % 7 == 0:
            logger.warning("step %d is slow, %s", step, "and this takes some words " * 4)
        if sizes and step % 3 == 0:
            with display.lock:  # the thread that draws waits
                resized(stream, console, *sizes.pop(0))
                display.refresh()
                check(stream.screen)
    assert not sizes
    logger.removeHandler(handler)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Screen, Reflowing])
@pytest.mark.parametrize(("columns", "lines"), [(60, 14), (200, 50)])
def test_a_run_at_every_size_and_resized_to_all_others(tmp_path, kind, columns, lines):
    run = fake_run(tmp_path / "quickstart.kd-1a2b3c4d", steps=40, epochs=4.0)
    with terminal(kind, columns, lines) as (stream, console):
        view = Frames(console, run, Clock())
        at = SIZES.index((columns, lines))
        drive(stream, console, view, [*SIZES[at + 1 :], *SIZES[: at + 1]])
        view.end(None)
        assert not re.search("[│╭╰╮╯━┤]", "".join(stream.screen.shown()))
        assert stream.screen.cursor.hidden is False


@pytest.mark.slow
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize(("epochs", "in_epochs"), [(4.0, True), (4.0, False), (0.3, True)])
def test_no_score_is_missing_from_a_line(tmp_path, columns, epochs, in_epochs):
    run = fake_run(tmp_path / "quickstart.kd-1a2b3c4d", steps=20, epochs=epochs)
    run.recipe.table = run.recipe.table | {"train": {"epochs" if in_epochs else "steps": 4}}
    with terminal(Screen, columns, 60) as (stream, console):
        view = Frames(console, run, Clock())
        drive(stream, console, view, steps=20)
        view.end(None)
        shown = "\n".join(stream.screen.shown())
    lines_above = re.findall(r"^((?:step|epoch) .*(?:\n {8,}.*)*)", shown, re.MULTILINE)
    by_evaluation = [line for line in lines_above if "nll" in line]
    assert len(by_evaluation) == 5
    for step, line in zip(range(0, 21, 5), by_evaluation, strict=True):
        place = (
            f"epoch {step // 5}/4" if in_epochs and epochs > 1 and step else f"step {step:>2}/20"
        )
        assert line.startswith(place)
        assert all(f"  {name} " in line.replace("\n", " ") for name in SCORES)
        assert max(map(len, line.splitlines())) <= columns
    assert len(lines_above) >= (5 if in_epochs and epochs > 1 else 20)
    assert ("epoch" in shown) == (in_epochs and epochs > 1)


def test_a_bar_of_ours_stands_below_the_panel(tmp_path):
    run = fake_run(tmp_path / "quickstart.kd-1a2b3c4d", steps=40, epochs=4.0)
    with terminal(Screen, 80, 24) as (stream, console):
        view = Frames(console, run, Clock())
        view.start()
        bar = show_live(Bar("evaluating perplexity", 100, "rows"))
        view._shown._display.refresh()
        lines = [line for line in stream.screen.shown() if line]
        assert lines[-2].startswith("╰") and lines[-1].startswith("evaluating perplexity")
        bar.close()
        view._shown._display.refresh()
        assert [line for line in stream.screen.shown() if line][-1].startswith("╰")
        view.end(None)


def test_a_bar_that_was_there_first_stays_above_the_panel(tmp_path):
    run = fake_run(tmp_path / "quickstart.kd-1a2b3c4d", steps=40, epochs=4.0)
    with terminal(Screen, 80, 24) as (stream, console):
        bar = show_live(Bar("downloading"), console)
        view = Frames(console, run, Clock())
        view.start()
        bar.close()
        view._shown._display.refresh()
        check_no_bar = "\n".join(stream.screen.shown())
        assert "downloading" not in check_no_bar and "╰" in check_no_bar
        print("from elsewhere", file=sys.stderr)
        assert "from elsewhere" in stream.screen.shown()
        view.end(None)


def test_what_an_interrupt_tore_off_is_taken_away_at_the_end():
    with terminal(Screen, 80, 24) as (stream, console):
        torn = show_live(Bar("tokenising train texts", 100, "characters"), console)
        assert any("tokenising" in line for line in stream.screen.shown())
        give_back()
        assert not any(stream.screen.shown()) and not stream.screen.cursor.hidden
        torn.close()  # by the garbage collector, later
        give_back()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_forked_process_does_not_wait():
    with terminal(Screen, 80, 24) as (stream, console):
        bar = show_live(Bar("tokenising train texts", 100, "characters"), console)
        with bar._display.lock:  # as a thread that draws at this very moment may
            child = os.fork()
            if child == 0:
                os._exit(0 if sys.stderr is stream else 1)
        assert os.waitpid(child, 0)[1] == 0
        bar.close()
