"""Controls differ from their twin in one thing: resolved recipes side by side, key by key."""

import math

import pytest
import tomli
from sweeping import SELECTION, STAGES, points
from whole_runs import RECIPE

from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe
from kdcore.runs.reading.facts import flat
from kdcore.sweeps.controls import (
    Twin,
    smoothing_of,
    steps_for,
    with_share,
    with_smoothing,
    with_steps,
)

pytestmark = pytest.mark.usefixtures("here")
NONE = object()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def host():
    return PluginManager(off=["panel"])


def resolved(recipe, stage):
    return dict(flat(tomli.loads(recipe.resolved(recipe.checked[stage]))))


def differences(one, other):
    keys = one.keys() | other.keys()
    both = {key: (one.get(key, NONE), other.get(key, NONE)) for key in keys}
    return {key: pair for key, pair in both.items() if pair[0] != pair[1]}


def twin_and_control(host, text, control, stage="small"):
    twin, made = points(host, f"{text}\n[sweep]\nseed = [3]\ncontrols = [{control!r}]\n")
    assert made.control == control and made.twin is twin and made.values == twin.values
    return differences(resolved(twin.recipe, stage), resolved(made.recipe, stage))


def test_no_teacher_leaves_the_other_terms_as_they_are(host):
    found = twin_and_control(host, STAGES, "no-teacher")
    assert {key.split(".")[0] for key in found} == {"teacher", "loss", "eval"}
    assert not [key for key in found if key.startswith("loss.1.")]  # ce, with its weight
    assert all(new is NONE for _, new in found.values())
    assert found["eval.2.use"][0] == "agreement" and found["loss.2.use"][0] == "kl"


def test_no_teacher_without_another_loss_gets_the_likelihood(host):
    text = STAGES.replace('[[stage.small.loss]]\nuse = "ce"\nweight = 0.5\n', "")
    found = twin_and_control(host, text, "no-teacher")
    assert found["loss.1.use"] == ("kl", "ce") and found["loss.1.weight"] == (0.5, 1.0)


def test_no_selection(host):
    dropped = STAGES.replace('use = "ce"\nweight', 'use = "ce"\non = "dropped"\nweight')
    found = twin_and_control(host, dropped + SELECTION, "no-selection")
    assert {key for key in found if not key.startswith("loss")} == {
        *(f"selection.{key}" for key in ("use", "keep", "scope")),
    }
    assert found["loss.1.use"] == ("ce", "kl")
    whole = STAGES.replace('use = "ce"\nweight', 'use = "ce"\non = "all"\nweight')
    found = twin_and_control(host, whole + SELECTION, "no-selection")
    assert found["loss.1.on"] == ("all", "kept") and len(found) == 4


def test_random_selection_keeps_the_share_that_is_written(host):
    found = twin_and_control(host, STAGES + SELECTION, "random-selection")
    assert found == {"selection.use": ("hardest", "random")}


def test_a_recipe_without_stages(host):
    text = RECIPE + '\n[selection]\nuse = "hardest"\nkeep = {start = 0.5, end = 1.0}\n'
    found = twin_and_control(host, text, "random-selection", stage="")
    assert found == {"selection.use": ("hardest", "random")}


SHARELESS = """
[stage.small.selection]
use = "band"
from = 0.1
score = {use = "ce"}
"""


@pytest.mark.parametrize(
    ("control", "text", "plain"),
    [
        ("random-selection", STAGES + SHARELESS, []),
        ("smoothed", STAGES, []),
        ("more-steps", STAGES, ["no-teacher"]),
        ("more-steps", RECIPE + SELECTION.replace("stage.small.", ""), ["no-selection"]),
    ],
)
def test_what_is_measured_waits_for_the_twin(host, control, text, plain):
    found = points(host, f"{text}\n[sweep]\nseed = [3]\ncontrols = [{control!r}]\n")
    twin, *others, waiting = found
    assert [each.control for each in others] == plain and waiting.waits
    assert waiting.twin is twin and waiting.plain is (others[0] if others else None)


def made(host, changes):
    twin = read_recipe("r.toml", host)
    return differences(
        resolved(twin, "small"), resolved(read_recipe("r.toml", host, sets=changes), "small")
    )


def twin(host, text):
    points(host, text)
    return Twin.of(read_recipe("r.toml", host), "small")


def test_a_measured_share(host):
    found = made(host, with_share(twin(host, STAGES + SHARELESS), 0.25))
    assert found["selection.keep"] == (NONE, 0.25)
    assert {key.split(".")[0] for key in found} == {"selection"}


def test_measured_steps(host):
    found = made(host, with_steps(twin(host, STAGES), 9))
    assert found["train.steps"] == (4, 9)
    assert {key.split(".")[0] for key in found} == {"train", "teacher", "loss", "eval"}
    assert steps_for(30.0, 10.0, 100) == 300 and steps_for(1e-6, 10.0, 100) == 1


def test_a_measured_smoothing(host):
    found = made(host, with_smoothing(twin(host, STAGES), 0.25))
    assert found["loss.2.use"] == ("kl", "smoothed-ce")
    assert found["loss.2.smoothing"] == (NONE, 0.25)
    assert "loss.2.weight" not in found and not [key for key in found if key.startswith("loss.1")]
    assert {key.split(".")[0] for key in found} == {"teacher", "loss", "eval"}


@pytest.mark.parametrize("smoothing", [0.001, 0.1, 0.5, 0.9, 1.0])
def test_smoothed_labels_are_as_uncertain_as_asked(smoothing):
    ids = 50
    label, rest = 1 - smoothing + smoothing / ids, smoothing / ids
    entropy = -label * math.log(label) - (ids - 1) * rest * math.log(rest)
    assert smoothing_of(entropy, ids) == pytest.approx(smoothing, abs=2e-6)
    assert smoothing_of(0.0, ids) == 0.0
