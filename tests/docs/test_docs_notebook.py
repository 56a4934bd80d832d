"""docs/first-student.ipynb is executed from its first cell to its last, in a kernel of its own."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "first-student.ipynb"


def notebook():
    """Few steps, and kdcore as it is here: what is installed is not installed again."""
    found = nbformat.read(NOTEBOOK, as_version=4)
    found.cells = [cell for cell in found.cells if "install" not in cell.metadata.get("tags", [])]
    for cell in found.cells:
        cell.source = cell.source.replace("FULL = True", "FULL = False")
    return found


def test_it_is_kept_without_outputs_and_installs_kdcore_first():
    found = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(found)
    cells = [cell for cell in found.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    assert cells[0].source == "%pip install -q kdcore"


@pytest.mark.slow
def test_it_runs(tmp_path):
    found = notebook()
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(
        found, timeout=500, kernel_name="python3", resources=resources
    ).execute()
    said = "".join(
        output.get("text", "") for cell in found.cells for output in cell.get("outputs", [])
    )
    assert "nats a token" in said and "Once upon a time" in said
    assert len(list((tmp_path / "runs").glob("first_student.*"))) == 3
    streams = [o for cell in found.cells for o in cell.get("outputs", []) if o.get("name")]
    assert not [each for each in streams if "Traceback" in each["text"]]
