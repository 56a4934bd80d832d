"""The frame of a run that is over, from its folder: for pictures of real runs."""

from __future__ import annotations

from pathlib import Path

from kdcore_files import read_metrics

from kdcore_panel.facts import facts_of_folder, read_settings
from kdcore_panel.frame import Frame
from kdcore_panel.history import History
from kdcore_panel.pace import Pace


def recorded(folder: Path, share: float = 1.0) -> Frame:
    """The frame as it stood when `share` of the recorded steps were done."""
    lines = read_metrics(folder)
    steps = max((int(line["step"] or 0) for line in lines), default=0)
    history = History(line for line in lines if int(line["step"] or 0) <= steps * share)
    train = read_settings(folder).get("train", {})
    pace = Pace.of(steps, train.get("epochs", 0), 0, 0.0, 0.0)
    now = history.latest.get("elapsed", 0.0)
    pace.reach(history.step, now)
    return Frame(facts_of_folder(folder), history, pace, now)
