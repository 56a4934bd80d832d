"""Selections keep the highest scores of a step, and ceil(keep x N) tokens exactly."""

import math
from types import SimpleNamespace

import pytest
import torch
from kdcore_selections import Entropy, Hardest, Random, Rho, kdcore_selections
from pydantic import ValidationError

from kdcore import Selection, read_nll
from kdcore.testing import check_selection
from kdcore.testing.fakes import TableTeacher, make_batch, make_tokens

ROWS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5], [8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2]]
VALID = 7 + 2 + 10
BATCH = make_batch(ROWS)


@pytest.fixture(autouse=True)
def without_gradient():
    """As the engine calls selections."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def tokens():
    return make_tokens(BATCH, TableTeacher(seed=5))


def highest(scores, share):
    """What `share` of the scores keeps, by sorting."""
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[scores.argsort(descending=True)[: math.ceil(share * len(scores))]] = True
    return kept


def test_rho_keeps_the_largest_excess_over_the_reference(tokens):
    reference = TableTeacher(seed=2)
    selection = Rho(keep=0.3, reference=reference)
    of_reference = read_nll(reference, BATCH)(BATCH.valid, BATCH.labels[BATCH.valid])
    excess = tokens.student_nll() - of_reference
    assert selection.keep(tokens).equal(highest(excess, 0.3))
    # The engine logs threshold and excess from what was ranked last.
    torch.testing.assert_close(tokens.ranked.scores, excess)


def test_rho_never_sees_padding(tokens):
    kept = Rho(keep=1.0, reference=TableTeacher()).keep(tokens)
    assert kept.all()
    assert len(kept) == VALID < BATCH.input_ids.numel()


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.95, 1.0])
def test_random_keeps_exactly_its_share(tokens, share):
    assert Random(keep=share).keep(tokens).sum() == math.ceil(share * VALID)


def test_random_draws_again_at_each_step():
    first, second = (Random(keep=0.5).keep(make_tokens(BATCH, step=step)) for step in (1, 2))
    assert not first.equal(second)


def test_hardest_keeps_what_the_student_predicts_worst(tokens):
    assert Hardest(keep=0.4).keep(tokens).equal(highest(tokens.student_nll(), 0.4))


def test_entropy_of_the_teacher(tokens):
    teacher = TableTeacher(seed=5).table().softmax(-1)
    entropy = -(teacher * teacher.log()).sum(-1)[BATCH.input_ids.flatten()[BATCH.valid]]
    assert Entropy(keep=0.4, of="teacher").keep(tokens).equal(highest(entropy, 0.4))


def test_entropy_of_the_student_needs_no_teacher(tokens):
    from kdcore.models.causal_lm import LanguageModel
    from kdcore.testing.fakes import tiny_llama

    student = LanguageModel(tiny_llama())
    logits = student.logits(student.states(BATCH)[BATCH.valid])
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    kept = Entropy(keep=0.4).keep(make_tokens(BATCH))
    assert kept.equal(highest(entropy, 0.4))


def test_only_the_teachers_entropy_needs_the_teacher_of_the_run():
    assert Entropy(keep=0.5, of="teacher").needs_teacher()
    assert not Entropy(keep=0.5).needs_teacher()
    assert not Rho(keep=0.5, reference=TableTeacher()).needs_teacher()


@pytest.mark.parametrize(
    "selection",
    [
        Rho(keep=0.3, reference=TableTeacher()),
        Random(keep=0.3),
        Hardest(keep=0.3),
        Entropy(keep=0.3),
        Entropy(keep=0.3, of="teacher"),
    ],
    ids=lambda selection: selection.name,
)
def test_contract(selection):
    check_selection(selection)


@pytest.mark.parametrize("keep", [0.0, 1.01, -0.5, math.nan, "0.3", None])
def test_keep_is_a_share(keep):
    with pytest.raises(ValidationError, match="keep"):
        Hardest(keep=keep)


def test_keep_and_reference_are_required():
    with pytest.raises(ValidationError, match="keep"):
        Random()
    with pytest.raises(ValidationError, match="reference"):
        Rho(keep=0.3)
    with pytest.raises(ValidationError, match="reference"):
        Rho(keep=0.3, reference=Random(keep=0.5))


def test_hook_kdcore_selections():
    names = "rho random hardest entropy score band agreement and or not soft gls"
    assert [each.name for each in kdcore_selections()] == names.split()
    assert all(issubclass(each, Selection) for each in kdcore_selections())


def test_a_teacher_of_likelihoods_only_has_no_entropy():
    recipe = SimpleNamespace(teacher=SimpleNamespace(name="some", gives_logits=lambda: False))
    [said] = Entropy(keep=0.5, of="teacher").faults(recipe)
    assert said == "the teacher's entropy needs logits, and 'some' gives none"
    assert [*Entropy(keep=0.5).faults(recipe)] == []
