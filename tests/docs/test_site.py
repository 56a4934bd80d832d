"""docs/ is a site: every page is in its navigation, every link leads somewhere, and it builds."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
CONFIG = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]


def test_every_page_is_in_the_navigation_once():
    listed = [page for section in CONFIG["nav"] for pages in section.values() for page in pages]
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if not re.match(r"https?://", target):
            file, _, anchor = target.partition("#")
            there = (page.parent / file).resolve() if file else page
            assert there in PAGES or (there.is_file() and there.parent == DOCS), target
            assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", [DOCS / "index.md", ROOT / "README.md"], ids=lambda p: p.name)
def test_every_page_is_linked_from_the_first(page):
    text = page.read_text()
    for other in PAGES:
        assert other.name in text or other == page or other.name == "index.md", other.name


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path):
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    zensical = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(zensical, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in PAGES:
        place = page.relative_to(DOCS).with_suffix("")
        folder = tmp_path / "site" / (place if page.stem != "index" else "")
        title = page.read_text().partition("\n")[0].removeprefix("# ")
        assert "<h1 id=" in (html := (folder / "index.html").read_text())
        assert re.sub(r"[`*]", "", title) in html


def without_code(text: str) -> str:
    """Markdown without its code, whose brackets are no links."""
    return re.sub(r"^```.*?^```|`[^`\n]+`", "", text, flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """The ids of a page's headings, as the generator and GitHub make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_the_site_is_built_for_each_change_and_published_from_main():
    build, publish = workflow("site.yml")["jobs"].values()
    assert [step["run"] for step in build["steps"] if "run" in step] == ["make site"]
    (upload,) = [step for step in build["steps"] if "upload-pages" in step.get("uses", "")]
    assert upload["with"]["path"] == "site"
    assert "refs/heads/main" in publish["if"]
    assert publish["permissions"] == {"pages": "write", "id-token": "write"}


def test_the_workflows_run_what_the_repository_has():
    (test,) = workflow("test.yml")["jobs"].values()
    (command,) = [step["run"] for step in test["steps"] if "run" in step]
    assert os.access(ROOT / command, os.X_OK)
    assert re.search(r"^site: setup$", (ROOT / "Makefile").read_text(), re.M)


def workflow(name: str) -> dict:
    return yaml.safe_load((ROOT / ".github/workflows" / name).read_text())
