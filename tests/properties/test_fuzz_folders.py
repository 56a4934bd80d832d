"""Run folders that something befell: going on is told or works, and `--fresh` always works."""

import shutil
from pathlib import Path

import pytest
from fuzzing import a_world, cases, ended_cleanly, kdcore
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

CONTENTS = [b"", b"{}", b"[]", b"null", b"7", b"\xff\xfe", b"\0" * 99, b'{"step": "x"}\n', b"a = 1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was stopped after its last checkpoint."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        a_world(folder)
        ended_cleanly(kdcore("run", "plain.toml"), (0,))
        shutil.move("runs", "good")
        yield next(Path("good").glob("plain-*"))


@cases(35)
@given(st.data())
def test_damaged_run_folders(run, data):
    shutil.rmtree("runs", ignore_errors=True)
    shutil.copytree("good", "runs")
    damaged = Path("runs", run.name)
    if data.draw(st.booleans()):
        shutil.rmtree(damaged / "final")
    for _ in range(data.draw(st.integers(1, 2))):
        files = sorted(path for path in damaged.rglob("*") if path.is_file())
        path = data.draw(st.sampled_from(files))
        how = data.draw(st.sampled_from(["gone", "cut", "other", "folder"]))
        if how == "cut":
            path.write_bytes(path.read_bytes()[: data.draw(st.integers(0, 99))])
        elif how == "other":
            path.write_bytes(data.draw(st.sampled_from(CONTENTS)))
        else:
            path.unlink()
            if how == "folder":
                path.mkdir()
    verbs = [["run", "plain.toml"], ["run", damaged], ["show", damaged], ["eval", damaged]]
    ended_cleanly(kdcore(*data.draw(st.sampled_from(verbs))), (0, 1, 2))
    ended_cleanly(kdcore("run", "plain.toml", "--fresh"), (0,))


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", ["env.json", "fingerprints.json", "recipe.toml"])
def test_a_damaged_record_ends_no_run_at_its_end(run, name, content):
    """The model card is made after the last step: too late to find out that it cannot be."""
    shutil.rmtree("runs", ignore_errors=True)
    shutil.copytree("good", "runs")
    damaged = Path("runs", run.name)
    shutil.rmtree(damaged / "final")
    (damaged / name).write_bytes(content)
    outcome = kdcore("run", "plain.toml")
    refused = name == "fingerprints.json" and content not in (b"{}", b'{"step": "x"}\n')
    ended_cleanly(outcome, (2,) if refused else (0,))
    if refused:
        assert "remove that file to resume" in outcome.err
        (damaged / name).unlink()
        ended_cleanly(kdcore("run", "plain.toml"), (0,))
