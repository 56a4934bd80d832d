"""Damage between runs: refused with a way out, or mended with a line; never trained on."""

import logging
import shutil
from pathlib import Path

import pytest
from whole_runs import RECIPE, STAGES, flip, run

from kdcore import RunError
from kdcore.plugin.manager import Host
from kdcore.runs.open import open_run

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger("kdcore"), "propagate", True)


@pytest.fixture(scope="module")
def host():
    return Host(off=["panel"])


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_final_that_changed_is_refused_and_fresh_goes_on(host, name):
    big, small = run(host, STAGES)
    shutil.rmtree(small)
    flip(big / "final" / name)
    with pytest.raises(RunError, match="--fresh"):
        run(host, STAGES)
    with pytest.raises(RunError, match=str(big / "final" / name)):
        open_run(big, host)
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


def test_runs_of_earlier_versions_go_on(host):
    (folder,) = run(host)
    (folder / "checksums.json").unlink()
    shutil.rmtree(folder / "final")
    assert run(host) == [folder]
    assert open_run(folder, host).step == 4


def test_a_damaged_tokenizer_of_a_run_is_made_anew(host, caplog):
    (folder,) = run(host)
    before = (folder / "tokenizer" / "tokenizer.json").read_bytes()
    shutil.rmtree(folder / "final")
    flip(folder / "tokenizer" / "tokenizer.json")
    assert run(host) == [folder]
    assert (folder / "tokenizer" / "tokenizer.json").read_bytes() == before
    assert "the tokenizer is made anew" in caplog.text


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
