"""docs/panel-*.svg are what docs/export_panel.py draws, and docs/long-runs.md shows them."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


def script():
    spec = importlib.util.spec_from_file_location("export_panel", DOCS / "export_panel.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("size", script().SIZES)
def test_the_picture_is_up_to_date(size):
    kept = (DOCS / f"panel-{size[0]}.svg").read_text(encoding="utf-8")
    assert kept == script().picture(*size)
    assert f"(panel-{size[0]}.svg)" in (DOCS / "long-runs.md").read_text(encoding="utf-8")
