"""`kdcore report`: a page with the numbers of the runs, that needs nothing else and can be read."""

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_runs import made
from typer.testing import CliRunner

from kdcore.cli.main import app
from kdcore.commands.reporting.charts import Line, Point, curves, dash_of, ticks
from kdcore.commands.reporting.tokens import CLASSES, four_classes

ALONE = {"meta", "br", "path", "circle"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Page(HTMLParser):
    """Elements in order, the texts of table cells, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.cells, self.text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ALONE:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and {"td", "th"} & {*self.open}:
            self.cells[-1] += data.strip()


def reported(*arguments):
    command = ["report", *map(str, arguments), "--html", "page.html", "--rows", "0"]
    done = CliRunner().invoke(app, command, standalone_mode=False)
    assert done.exception is None, done.exception
    text = Path("page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    return text, page


def arms(seeds=3, count=2, values=None):
    draw = np.random.default_rng(0)
    for n in range(count):
        for seed in range(seeds):
            course = values or (3.0, 2.0 - n / 10, 1.0 - n / 10 + draw.uniform(-0.01, 0.01))
            made(f"r.arm{n}", seed, course, loss=f"loss{n}")


def test_numbers_are_those_of_metrics_jsonl():
    arms()
    _, page = reported("r.*")
    for folder in Path("runs").iterdir():
        last = json.loads(Path(folder, "metrics.jsonl").read_text().splitlines()[-1])
        assert repr(last["eval/nll"]) in page.cells
        assert folder.name in page.cells
    lines = [json.loads(f.read_text().splitlines()[-1]) for f in Path("runs").glob("*0-*/metrics*")]
    mean = sum(line["eval/nll"] for line in lines) / 3
    assert f"{mean:.6g}" in page.cells


def test_the_page_needs_nothing_from_elsewhere():
    arms()
    text, page = reported("r.*")
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.elements}
    assert not any(
        name.startswith("on") or name in ("src", "href") for _, a in page.elements for name in a
    )


def test_charts_say_in_words_what_they_show():
    arms()
    _text, page = reported("r.*", "--baseline", "arm0")
    charts = [a for tag, a in page.elements if tag == "svg" and a.get("class") == "chart"]
    assert len(charts) == 4 and all(a["role"] == "img" for a in charts)
    assert any("arm1: 3.0000 at 0 tokens, 0.9" in a["aria-label"] for a in charts)
    hidden = [a for tag, a in page.elements if tag == "svg" and a.get("class") == "swatch"]
    assert hidden and all(a["aria-hidden"] == "true" for a in hidden)
    assert ("html", {"lang": "en"}) in page.elements
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))
    for _tag, attributes in page.elements:
        if attributes.get("class") == "scroll":
            assert attributes["tabindex"] == "0" and attributes["aria-label"]


def test_what_a_model_wrote_is_text():
    bad = '<script>alert(1)</script> & "more"'
    for seed in range(3):
        made("r.ce", seed, scores=lambda nll: {"sample/1": bad})
        folder = made("r.kd", seed, loss="kl", scores=lambda nll: {"sample/1": bad})
        line = {"step": 3, "source": "student", "finished": True, "prompt": "<b>", "text": bad}
        (folder / "rollouts.jsonl").write_text(json.dumps(line) + '\n{"torn')
    text, page = reported("r.*")
    assert "<script" not in text and "<b>" not in text
    assert "".join(page.text).count(bad) == 3  # the sample of two arms, and the rollout


@pytest.mark.slow
def test_thirty_runs_with_long_courses_stay_small():
    arms(seeds=5, count=6, values=tuple(3 - n / 1000 for n in range(400)))
    text, page = reported("r.*")
    assert len(text.encode()) < 1_000_000
    assert "30 runs in 6 arms" in "".join(page.text)


def test_gradient_shares_selection_and_cost():
    for seed in range(3):
        made("r.ce", seed)
        folder = made("r.kd", seed, loss="kl", more="[selection]\nuse = 'rho'\nkeep = 0.6")
        lines = Path(folder, "metrics.jsonl").read_text()
        for step in (10, 20):
            record = {"step": step, "tokens": step, "loss": 1.0, "schema": 2, "kept": 0.6}
            record |= {"gradient/ce": 0.25, "gradient/kl": 0.75, "selection/threshold": step / 10}
            lines += json.dumps({**record, "tokens_per_second": 50.0, "elapsed": 3600.0}) + "\n"
        Path(folder, "metrics.jsonl").write_text(lines)
    _, page = reported("r.*", "--price", "2.5", "--baseline", "ce")
    said = "".join(page.text)
    assert "kl: 75 % at the end" in said and "threshold of the selection" in said
    assert "60 %" in page.cells
    row = page.cells.index("cost")
    assert page.cells[row - 5 : row] == [
        "arm",
        "device",
        "tokens/s",
        "time of a run",
        "device hours of all",
    ]
    assert "7.5000" in page.cells and "a processor, threads: 1" in page.cells


def test_a_failed_run_and_arms_without_shown_tokens_are_named(monkeypatch):
    found = SimpleNamespace(run="r", classes=[], rows="", missing="", facts=[])
    monkeypatch.setattr("kdcore.commands.reporting.tokens.coloured", lambda *of: found)
    for use in ("rho", "random", "hardest", "entropy", "band", "gls"):
        folder = made(f"r.{use}", more=f"[selection]\nuse = '{use}'")
    (folder / "final").rmdir()
    (folder / "failure.txt").write_text("its node failed\n")
    command = ["report", "r.*", "--html", "page.html"]
    assert CliRunner().invoke(app, command).exit_code == 0
    page = Page(Path("page.html").read_text(encoding="utf-8"))
    assert "Not shown: tokens of band, gls." in "".join(page.text)
    assert "failed at step 100" in page.cells


def test_a_refusal_stands_in_the_place_of_a_table():
    arms()
    for seed in range(3):
        made("r.other", seed, loss="other", device="another processor")
    _, page = reported("r.*", "--baseline", "arm0")
    assert "Not compared: r.arm0-" in "".join(page.text)


@pytest.mark.parametrize(
    ("place", "said"),
    [("no/page.html", "cannot write no/page.html"), (".", "cannot write .: it is a folder")],
)
def test_a_place_that_cannot_be_written_is_named(place, said):
    arms()
    done = CliRunner().invoke(app, ["report", "r.*", "--html", place], standalone_mode=False)
    assert said in str(done.exception)


# Colours


def luminance(colour):
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def palettes():
    text = Path("page.html").read_text(encoding="utf-8")
    for block in re.findall(r":root \{(.*?)\}", text, re.DOTALL):
        found = dict(re.findall(r"--([\w]+): (#[0-9a-f]{3,6});", block))
        yield {
            k: v if len(v) == 7 else "#" + "".join(2 * c for c in v[1:]) for k, v in found.items()
        }


def test_texts_and_lines_stand_out_light_dark_and_printed():
    arms()
    reported("r.*")
    found = list(palettes())
    assert len(found) == 3
    for colours in found:
        for name in ("ink", "soft", *(["good", "bad"] if "good" in colours else [])):
            assert contrast(colours[name], colours["paper"]) >= 4.5, name
        for name in (f"c{n}" for n in range(6)):
            assert contrast(colours[name], colours["paper"]) >= 3, name


def test_neighbouring_lines_differ_in_more_than_colour():
    assert all(dash_of(n) != dash_of(n + 1) for n in range(23))
    assert len({(n % 6, dash_of(n)) for n in range(24)}) == 24


# Charts


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.98, 1.02), (-3, 250_000), (5, 5), (0, 0), (1e-6, 3e-6)]
)
def test_ticks_are_round_and_hold_all(low, high):
    found = ticks(low, high, 5)
    assert found[0] <= low and found[-1] >= high and 3 <= len(found) <= 12


def test_a_curve_of_one_point_is_a_dot_and_none_is_no_chart():
    one = Line("a", 0, [Point(1, 2, 2, 2)])
    assert "<circle" in curves("t", [one], "steps")
    assert curves("t", [Line("a", 0, [])], "steps") == ""


def test_the_four_classes():
    first = np.array([2.0, 0.1, 1.0, 3.0, 1.0])
    last = np.array([1.0, 0.2, 1.5, 3.1, 0.79])
    found = [CLASSES[n] for n in four_classes(first, last)]
    assert found == ["H→L", "L→L", "L→H", "H→H", "H→L"]
