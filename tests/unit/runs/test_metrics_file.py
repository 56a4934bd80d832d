"""metrics.jsonl, read one line at a time, and from its end."""

import json

import pytest

from kdcore.runs.reading import metrics
from kdcore.runs.reading.metrics import AGAIN, METRICS, iter_metrics, latest_values, read_metrics


def write(folder, lines, end="\n"):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / METRICS).write_text(text + end, encoding="utf-8")


@pytest.mark.parametrize("block", [1, 7, 40, 1 << 16])
def test_the_latest_values_are_found_from_the_end_in_blocks_of_any_size(
    tmp_path, monkeypatch, block
):
    monkeypatch.setattr(metrics, "_BLOCK", block)
    text = '{"step": 2, "eval/story": "Es war einmal ein Bär 熊"}'
    write(tmp_path, [{"step": 1, "loss": 3.0, "eval/nll": 2.0}, text, {"step": 3, "loss": 1.0}])
    found = latest_values(tmp_path, ("loss", "eval/nll"))
    assert (found["step"], found["loss"], found["eval/nll"]) == (3, 1.0, 2.0)
    assert found["eval/story"] == "Es war einmal ein Bär 熊"


def test_no_more_is_read_than_is_wanted(tmp_path, monkeypatch):
    write(tmp_path, [{"step": step, "loss": 1.0} for step in range(1, 1001)])
    parsed, before = [], metrics._parsed
    monkeypatch.setattr(metrics, "_parsed", lambda text: parsed.append(text) or before(text))
    assert latest_values(tmp_path, ("loss",))["step"] == 1000
    assert len(parsed) <= 2


def test_a_torn_last_line_is_passed_over(tmp_path):
    write(tmp_path, [{"step": 1, "loss": 3.0}, '{"step": 2, "lo'], end="")
    assert latest_values(tmp_path, ("loss",)) == {"step": 1, "loss": 3.0}
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 3.0}]


def test_lines_come_one_by_one_with_what_only_was_measured_again(tmp_path):
    run = [{"step": 1, "loss": 3.0}, {"step": 1, "eval/nll": 2.0}]
    again = {"step": 1, AGAIN: True, "eval/nll": 9.0, "eval/facts": 0.5}
    write(tmp_path, [*run, again])
    lines = iter_metrics(tmp_path)
    assert next(lines) == run[0] and next(lines) == run[1]
    assert next(lines) == {"step": 1, AGAIN: True, "eval/facts": 0.5}


def test_without_a_file_there_are_no_lines(tmp_path):
    assert read_metrics(tmp_path) == [] and latest_values(tmp_path, ("loss",)) == {}
