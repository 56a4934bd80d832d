"""docs/objects.md is what its generator writes, and every field in it is explained."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def generator():
    path = ROOT / "docs" / "generate_objects.py"
    spec = importlib.util.spec_from_file_location("generate_objects", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date():
    assert (ROOT / "docs" / "objects.md").read_text(encoding="utf-8") == generator().page()


def test_every_field_and_method_is_explained():
    text = (ROOT / "docs" / "objects.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `.*$", text, re.MULTILINE)
    assert len(rows) > 50
    assert not [row for row in rows if row.rstrip().endswith("| |") or row.endswith("|  |")]
