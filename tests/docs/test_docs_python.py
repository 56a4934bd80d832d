"""docs/python.md runs as it is written."""

import re

import pytest
from documents import DOCS

BLOCKS = re.findall(r"^```python\n(.*?)^```", (DOCS / "python.md").read_text(), re.M | re.S)


@pytest.mark.slow
def test_the_examples_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "docs"}
    for block in BLOCKS:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert len(BLOCKS) >= 2
    assert list((tmp_path / "runs").iterdir())
