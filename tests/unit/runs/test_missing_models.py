"""A model that is not there ends a run before anything is trained or tokenised."""

import shutil

import pytest
import tiny
from whole_runs import RECIPE, run

from kdcore import RunError
from kdcore.plugin.manager import PluginManager
from kdcore.training.run_state import RunState

STAGES = (
    RECIPE
    + """
[stage.first]
[stage.second]
student = { model = "./big" }
[stage.second.teacher]
use = "hf"
model = "./big"
[[stage.second.loss]]
use = "kl"
"""
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def started(text, **asked):
    return run(PluginManager(), text, **asked)


def test_of_a_later_stage(here):
    with pytest.raises(RunError) as raised:
        started(STAGES)
    assert str(raised.value) == f"there is no folder './big' in {here}"
    assert not [*here.glob("runs/*")]
    started(STAGES, stage="first")  # which does not need it


def test_of_a_stage_that_is_finished(here):
    tiny.save(here / "big")
    text = STAGES.replace('use = "bpe"\nvocab_size = 270', 'use = "hf"\nmodel = "./big"')
    done = started(text)
    shutil.rmtree(here / "big")
    assert started(text) == done


@pytest.mark.parametrize(
    "more", ['[teacher]\nuse = "hf"\nmodel = "some/big"\n', '[student]\nmodel = "some/big"\n']
)
def test_of_a_name_that_only_loading_can_judge(here, monkeypatch, more):
    text = RECIPE.replace('use = "ce"', 'use = "kl"') if "teacher" in more else RECIPE
    if "student" in more:
        text = text[: text.index("[student.config]")] + text[text.index("[train]") :]

    def tokenised(*_, **__):
        raise AssertionError("the data came before the models")

    monkeypatch.setattr(RunState, "laid", tokenised)
    with pytest.raises(RunError, match="cannot load 'some/big': not a folder here"):
        started(text + more)
