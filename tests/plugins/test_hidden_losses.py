"""`hidden-mse` and `hidden-cosine` against their formulas; the check of such losses."""

from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kdcore_losses import HiddenCosine, HiddenMse
from pydantic import ValidationError

import kdcore
from kdcore import HiddenStatesLoss, component
from kdcore.errors import RecipeError
from kdcore.plugin.manager import PluginManager
from kdcore.recipe.recipe import read_recipe
from kdcore.testing import check, check_loss

pytestmark = pytest.mark.slow

BOTH = [HiddenMse, HiddenCosine]
PAIRS = [[1, 2], [-1, -1], [0, 0]]


def states(count, width=6, tokens=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, width, generator=generator).double() for _ in range(count)]


def test_hidden_mse_is_the_mean_square():
    student, teacher = states(3), states(3, seed=1)
    found = HiddenMse(layers=PAIRS).per_token_states(student, teacher)
    each = [((a - b) ** 2).sum(-1) / 6 for a, b in zip(student, teacher, strict=True)]
    torch.testing.assert_close(found, sum(each) / 3)


def test_hidden_cosine_is_one_minus_the_cosine():
    student, teacher = states(3), states(3, seed=1)
    found = HiddenCosine(layers=PAIRS).per_token_states(student, teacher)
    each = [
        1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
        for a, b in zip(student, teacher, strict=True)
    ]
    torch.testing.assert_close(found, sum(each) / 3)


@pytest.mark.parametrize("loss", BOTH)
@given(seed=st.integers(0, 1000), size=st.floats(0.01, 100))
@settings(deadline=None, max_examples=30)
def test_never_negative_and_0_at_equality(loss, seed, size):
    made = loss(layers=PAIRS)
    student, teacher = ([size * x for x in states(3, seed=n)] for n in (seed, seed + 1))
    assert (made.per_token_states(student, teacher) > 0).all()
    assert made.per_token_states(student, student).abs().max() < 1e-12


@given(size=st.floats(0.01, 100))
@settings(deadline=None, max_examples=20)
def test_the_cosine_does_not_see_sizes(size):
    made, student, teacher = HiddenCosine(), states(1), states(1, seed=1)
    larger = made.per_token_states(student, [size * teacher[0]])
    torch.testing.assert_close(larger, made.per_token_states(student, teacher))


@pytest.mark.parametrize("loss", BOTH)
def test_the_contract_is_kept(loss):
    check_loss(loss(layers=PAIRS))
    check(loss())


def test_formulas():
    assert HiddenMse(layers=[[6, 12]]).formula() == "MSE(h(6), g(12))"
    several = HiddenCosine(layers=[[1, 2], [-1, -1]], projection="linear")
    assert several.formula() == "(1 - cos(W(h(1)), g(2)) + 1 - cos(W(h(-1)), g(-1))) / 2"


@pytest.mark.parametrize("layers", [[], [[1]], [[1, 2, 3]], [1, 2], [[1, 2.5]]])
def test_pairs_of_whole_numbers(layers):
    with pytest.raises(ValidationError):
        HiddenMse(layers=layers)


@component
class Bad(HiddenStatesLoss):
    name = "bad"
    how: str = "other layers"

    def per_token_states(self, student, teacher):
        difference = (student[-1] - teacher[-1]).square().mean(-1)
        match self.how:
            case "other layers":
                return difference
            case "sum":
                return difference.sum()
            case "negative":
                return -sum(x.square().sum(-1) for x in student)
            case "neighbours":
                return sum(x.square().sum(-1) for x in student) - difference.mean().detach()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("other layers", "no finite gradient in every layer"),
        ("sum", "expected one value for each of 12 tokens"),
        ("negative", "bad: is negative"),
        ("neighbours", "gives a token other values among fewer"),
    ],
)
def test_a_bad_loss_is_reported_why(how, said):
    with pytest.raises(AssertionError, match=said):
        check_loss(Bad(how=how, layers=PAIRS))


RECIPE = """
[tokenizer]
use = "bpe"
[data]
use = "stories"
[student.config]
model_type = "gpt2"
n_layer = 2
n_embd = 16
n_head = 2
[train]
steps = 1
batch = 1
lr = 1e-3
[[loss]]
use = "hidden-mse"
layers = [[0, 1], [-1, 3]]
[teacher]
"""


def faults(tmp_path, teacher):
    path = tmp_path / "r.toml"
    path.write_text(RECIPE + teacher)
    with pytest.raises(RecipeError) as raised:
        read_recipe(str(path), PluginManager())
    return str(raised.value)


@pytest.mark.parametrize(
    "teacher",
    [
        'use = "cached"\nteacher = {use = "hf", model = "some/model"}',
        'use = "ensemble"\nmembers = [{use = "hf", model = "a"}, {use = "hf", model = "b"}]',
        'use = "served"\nurl = "http://127.0.0.1:1"\nmodel = "m"',
        'use = "aligned"\nteacher = {use = "hf", model = "some/model"}',
    ],
)
def test_a_teacher_that_shows_no_states_is_refused(tmp_path, teacher):
    found = faults(tmp_path, teacher)
    assert "the loss 'hidden-mse' compares hidden states, and the teacher" in found
    assert "shows none" in found


def test_layers_and_widths_are_checked_where_configs_are_here(tmp_path):
    import tiny

    tiny.save(tmp_path / "model")
    found = faults(tmp_path, f'use = "hf"\nmodel = "{tmp_path}/model"')
    assert "the teacher has 2 layers, and no hidden state 3" in found
    assert "the student's state 0 has 16 numbers and the teacher's state 1 has 32" in found


@pytest.mark.parametrize(
    "config", [{}, {"model_type": "none"}, {"model_type": "llama", "hidden_size": "a"}]
)
def test_a_student_that_is_wrong_is_the_students_error(config, tmp_path, monkeypatch):
    """The rule about layers looks at a config that may be anything."""
    monkeypatch.chdir(tmp_path)
    recipe = {
        "student": {"config": config},
        "tokenizer": {"use": "bpe"},
        "data": {"use": "stories"},
        "teacher": {"use": "hf", "model": "nowhere"},
        "loss": [{"use": "hidden-mse"}],
        "train": {"lr": 1e-3, "steps": 1},
    }
    with suppress(kdcore.RecipeError):  # some are found when the model is made
        kdcore.check(recipe)
