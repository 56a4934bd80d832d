"""Damage between runs and refusals of the machine: told with a way out, or mended with a line."""

import errno
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
from kdcore_cached import store
from whole_runs import RECIPE, STAGES, flip, run

from kdcore import RunError
from kdcore.data import tokenized
from kdcore.plugin.manager import PluginManager
from kdcore.runs import artifacts, runner
from kdcore.runs.folder import failure_of
from kdcore.runs.open import begun, open_stage
from kdcore.runs.runner import RunRequest, run_all

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def host():
    return PluginManager(off=["panel"])


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_changed_final_is_refused_and_fresh_starts_over(host, name):
    big, small = run(host, STAGES)
    shutil.rmtree(small)
    flip(big / "final" / name)
    with pytest.raises(RunError, match="--fresh"):
        run(host, STAGES)
    with pytest.raises(RunError, match=str(big / "final" / name)):
        open_stage(begun(big, host))
    again = run(host, STAGES, fresh=True)
    assert [path.name for path in again] == [f"{big.name}-2", small.name]
    assert run(host, STAGES) == again


def test_a_copy_that_is_named_by_its_path_may_be_changed(host):
    (folder,) = run(host)
    copy = Path(shutil.copytree(folder / "final", "copy"))
    flip(copy / "model.safetensors", -3)
    flip(folder / "final" / "README.md")
    assert run(host) == [folder]
    before, after = RECIPE.split("[student.config]")
    named = f'{before}[student]\nmodel = "copy"\n{after[after.index("[train]") :]}'
    assert run(host, named, "copied.toml")


def test_runs_of_earlier_versions_resume(host):
    (folder,) = run(host)
    (folder / "checksums.json").unlink()
    shutil.rmtree(folder / "final")
    assert run(host) == [folder]
    assert open_stage(begun(folder, host)).step == 4


def test_a_damaged_tokenizer_of_a_run_is_rebuilt(host, caplog):
    (folder,) = run(host)
    before = (folder / "tokenizer" / "tokenizer.json").read_bytes()
    shutil.rmtree(folder / "final")
    flip(folder / "tokenizer" / "tokenizer.json")
    assert run(host) == [folder]
    assert (folder / "tokenizer" / "tokenizer.json").read_bytes() == before
    assert "the tokenizer is rebuilt" in caplog.text


def test_the_caches_of_a_teacher(host, caplog):
    big, small = run(host, STAGES)
    before = (small / "final" / "model.safetensors").read_bytes()
    (store,) = Path("runs/caches").iterdir()
    (store / "ids.i32").write_bytes(bytes((store / "ids.i32").stat().st_size))
    shutil.rmtree(small)
    caplog.set_level(logging.INFO)
    assert run(host, STAGES) == [big, small]
    assert (small / "final" / "model.safetensors").read_bytes() == before
    assert "values are damaged and are made anew" in caplog.text


def test_a_resumed_folder_keeps_its_stages_name(host):
    """In the lines that it adds too."""
    big, small = run(host, STAGES)
    shutil.rmtree(small / "final")
    for path in (small / "checkpoints").glob("step-4"):
        shutil.rmtree(path)
    assert run(host, STAGES) == [big, small]
    lines = [json.loads(line) for line in (small / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(small / "final")
    shutil.rmtree(small / "checkpoints" / "step-4")
    run_all(RunRequest(str(small), Path("runs")), host)
    again = [json.loads(line) for line in (small / "metrics.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in again} == {"small"}
    assert [line["step"] for line in again] == [line["step"] for line in lines]
    assert "the stage `small`" in (small / "final" / "README.md").read_text()


@pytest.mark.parametrize("name", ["EIO", "EACCES", "ESTALE", "EROFS", "EMFILE", "EDQUOT"])
@pytest.mark.parametrize("where", ["checkpoint", "final", "cache", "tokens", "texts"])
def test_what_the_machine_refuses_is_no_bug(host, monkeypatch, name, where):
    """It is named with a way out; once it is mended, the same command ends as if nothing was."""
    from safetensors import SafetensorError

    from kdcore.training.checkpoints import saving

    number = getattr(errno, name)
    error = OSError(number, os.strerror(number), f"/there/{where}")
    if where == "checkpoint":
        error = SafetensorError(f"I/O error: {os.strerror(number)} (os error {number})")
    targets = {
        "checkpoint": (saving, "save_file"),
        "final": (artifacts, "model_card"),
        "cache": (store, "_reserve"),
        "tokens": (tokenized, "stored"),
        "texts": (runner, "write_texts"),
    }

    def refused(*arguments, **options):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(*targets[where], refused)
        with pytest.raises(RunError) as caught:
            run(host, STAGES)
    assert caught.value.exit_code == 1
    said = str(caught.value)
    assert os.strerror(number) in said and "the same command resumes" in said
    assert where == "checkpoint" or f"/there/{where}" in said
    assert len(run(host, STAGES)) == 2


def test_the_reason_for_an_early_end_is_kept_until_the_run_resumes(host, monkeypatch):
    def refused(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", "/there/final")

    with monkeypatch.context() as patch, pytest.raises(RunError):
        patch.setattr(artifacts, "model_card", refused)
        run(host)
    (folder,) = Path("runs").glob("r-*")
    assert "Permission denied" in failure_of(folder)
    assert run(host) == [folder]
    assert failure_of(folder) is None and not (folder / "failure.txt").exists()
