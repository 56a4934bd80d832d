"""The bar of a notebook: one for each stage, moved by records, left where it ended."""

import io
from types import SimpleNamespace

from rich.console import Console

from kdcore.runs import notebook


def test_there_is_none_outside_notebooks(monkeypatch):
    assert notebook.notebook_progress() == []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(notebook, "find_spec", lambda name: None)
    assert notebook.notebook_progress() == []  # where nothing can be redrawn
    monkeypatch.setattr(notebook, "find_spec", lambda name: object())
    (found,) = notebook.notebook_progress()
    assert isinstance(found, notebook.NotebookProgress)


def test_records_move_the_bar_of_their_stage():
    text = io.StringIO()
    bar = notebook.NotebookProgress(Console(file=text, width=120))
    for name in ("quick.teacher", "quick.student"):
        run = SimpleNamespace(main=True, step=0, steps=40, recipe=SimpleNamespace(run_name=name))
        bar.kdcore_run_start(run)
        bar.kdcore_log(run, SimpleNamespace(step=20, loss=1.25, tokens_per_second=1234.5))
        bar.kdcore_log(run, SimpleNamespace(step=40, loss=1.0, tokens_per_second=1000.0))
        bar.kdcore_run_end(run, None)
    *_, teacher, student = text.getvalue().strip().splitlines()
    assert "quick.teacher" in teacher and "quick.student" in student
    for line in (teacher, student):
        assert "40/40" in line and "loss 1.0000, 1,000 tokens/s" in line


def test_other_processes_show_nothing():
    text = io.StringIO()
    bar = notebook.NotebookProgress(Console(file=text))
    run = SimpleNamespace(main=False, step=0, steps=4, recipe=SimpleNamespace(run_name="quick"))
    bar.kdcore_run_start(run)
    bar.kdcore_log(run, SimpleNamespace(step=4, loss=1.0, tokens_per_second=1.0))
    bar.kdcore_run_end(run, None)
    assert text.getvalue() == ""
