"""The panel of a finished run, read from its folder: for screenshots of real runs."""

from __future__ import annotations

from pathlib import Path

from kdcore import History, facts, metrics
from kdcore_panel.frame import Frame
from kdcore_panel.pace import Pace


def recorded(folder: Path, share: float = 1.0) -> Frame:
    """The panel as it was when `share` of the recorded steps were done."""
    lines = metrics.read_metrics(folder)
    steps = max((int(line["step"] or 0) for line in lines), default=0)
    history = History(line for line in lines if int(line["step"] or 0) <= steps * share)
    train = facts.read_settings(folder).get("train", {})
    pace = Pace.of(steps, train.get("epochs", 0), 0, 0.0, 0.0)
    now = history.latest.get("elapsed", 0.0)
    pace.reach(history.step, now)
    return Frame(facts.facts_of_folder(folder), history, pace, now)
