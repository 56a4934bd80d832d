"""`kdcore report` in a real browser: its numbers are those of the runs, and it fits the window."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from made_runs import made
from typer.testing import CliRunner

from kdcore.cli.main import app

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium to render the page"),
]
LONG = "a_loss_with_quite_a_long_name_that_an_interval_has_to_show_somewhere_above_its_line"
# In a copy of the page, as the page itself has no scripts.
MEASURES = """<script>
const outside = [...document.querySelectorAll("svg.chart text")].filter(each => {
  const [own, all] = [each, each.ownerSVGElement].map(one => one.getBoundingClientRect());
  return own.left < all.left - 2 || own.right > all.right + 2;
});
const edge = document.querySelector("main").getBoundingClientRect().right + 1;
const hidden = [...document.querySelectorAll(".cards td > span")].filter(each => {
  const own = each.getBoundingClientRect();
  return own.right > edge || own.width < 6;
});
document.body.dataset.found = JSON.stringify({
  window: innerWidth, page: document.documentElement.scrollWidth,
  outside: outside.map(each => each.textContent), hidden: hidden.map(each => each.textContent),
});
</script></body>"""


@pytest.fixture(autouse=True)
def page(tmp_path, monkeypatch):
    """A report of six runs; one arm has a long name."""
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        made("r.ce", seed, (3.0, 2.0, 1.0 + seed / 100))
        made(f"r.{LONG}", seed, (3.0, 1.5, 0.9 + seed / 70), loss="kl")
    command = ["report", "r.*", "--html", "page.html", "--rows", "0"]
    assert CliRunner().invoke(app, command).exit_code == 0
    return Path("page.html").read_text(encoding="utf-8")


def rendered(text, width):
    """The page as Chromium has it after rendering, without a network."""
    Path("shown.html").write_text(text, encoding="utf-8")
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--user-data-dir=browser"]
    words += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--window-size={width},1000", "--dump-dom"]
    done = subprocess.run(
        [CHROMIUM, *words, Path("shown.html").resolve().as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_numbers_are_those_of_metrics_jsonl(page):
    shown = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", rendered(page, 1400), re.DOTALL)
    cells = [unescape(re.sub(r"<[^>]+>", "", each)).strip() for each in shown]
    for folder in Path("runs").iterdir():
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        assert folder.name in cells and repr(last["eval/nll"]) in cells


@pytest.mark.parametrize("width", [500, 1400])
def test_nothing_is_wider_than_the_window_and_labels_stay_in_their_chart(page, width):
    shown = rendered(page.replace("</body>", MEASURES), width)
    (found,) = re.findall(r'data-found="(.*?)"', shown)
    measured = json.loads(unescape(found))
    assert measured["window"] <= width and measured["page"] <= measured["window"]
    assert measured["outside"] == []
    assert width > 640 or measured["hidden"] == []  # a wide table scrolls, cards do not
