"""Selections by any score, by agreement, combined, and soft."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kdcore_losses import CrossEntropy, ForwardKL
from kdcore_selections import Agreement, And, Band, Hardest, Not, Or, Random, Score, Soft
from pydantic import ValidationError

from kdcore import Loss, RunError
from kdcore.testing import check_selection
from kdcore.testing.fakes import TableTeacher, make_batch, make_tokens

ROWS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5], [8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2]]
BATCH = make_batch(ROWS)


@pytest.fixture(autouse=True)
def without_gradient():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def tokens():
    return make_tokens(BATCH, TableTeacher(seed=5))


def logits(tokens):
    """Student's and teacher's, by way of scores."""
    seen = {}

    class Look(Loss):
        name = "look"

        def per_token(self, student, teacher, labels):
            seen["student"], seen["teacher"] = student, teacher
            return student.sum(-1) * 0

    tokens.score(Look())
    return seen["student"], seen["teacher"]


def test_score_by_cross_entropy_is_hardest(tokens):
    by_loss = Score(keep=0.3, score=CrossEntropy()).keep(tokens)
    assert by_loss.equal(Hardest(keep=0.3).keep(tokens))


def test_a_band_is_what_lies_between(tokens):
    scores = tokens.score(ForwardKL())
    kept = Band(score=ForwardKL(), **{"from": 0.25, "to": 0.75}).keep(tokens)
    ranks = scores.argsort().argsort().double() / len(scores)
    assert kept.sum() == pytest.approx(0.5 * len(scores), abs=1)
    assert (ranks[kept] >= 0.2).all() and (ranks[kept] <= 0.75).all()
    everything = Band(score=ForwardKL()).keep(tokens)
    assert everything.all()


def test_an_empty_band_is_an_error():
    (said,) = Band(score=ForwardKL(), **{"from": 0.5, "to": 0.5}).faults(None)
    assert said == "from = 0.5 is not below to = 0.5: no token lies between"


@pytest.mark.parametrize("k", [1, 3])
def test_acceptance_is_whether_the_teacher_ranks_the_students_best_high(tokens, k):
    student, teacher = logits(tokens)
    best = student.argmax(-1)
    accepted = torch.tensor(
        [int(best[n]) in teacher[n].topk(k).indices.tolist() for n in range(len(best))]
    )
    assert Agreement(k=k).keep(tokens).equal(accepted)
    weights = Agreement(k=k, rejected=0.25).keep(tokens)
    assert weights.equal(torch.where(accepted, 1.0, 0.25))


def test_confidence_is_a_sure_teacher_and_an_unsure_student(tokens):
    student, teacher = logits(tokens)
    entropy = -(student.softmax(-1) * student.log_softmax(-1)).sum(-1)
    wanted = (teacher.softmax(-1).amax(-1) >= 0.2) & (entropy >= 1.0)
    selection = Agreement(by="confidence", confidence=0.2, uncertainty=1.0)
    assert selection.keep(tokens).equal(wanted)


shares = st.floats(0.01, 1.0)


@pytest.mark.slow
@given(shares, shares)
def test_de_morgan(one, other):
    tokens = make_tokens(BATCH, TableTeacher(seed=5))
    a, b = Hardest(keep=one), Random(keep=other)
    left = Not(of=And(members=[a, b])).keep(tokens)
    right = Or(members=[Not(of=a), Not(of=b)]).keep(tokens)
    assert left.equal(right)


def test_weights_combine_with_bools(tokens):
    weighs, keeps = Agreement(rejected=0.25), Hardest(keep=0.5)
    weights, kept = weighs.keep(tokens), keeps.keep(tokens)
    assert And(members=[weighs, keeps]).keep(tokens).equal(weights * kept)
    assert Or(members=[weighs, keeps]).keep(tokens).equal(torch.where(kept, 1.0, weights))
    assert Not(of=weighs).keep(tokens).equal(1 - weights)


def test_a_weight_above_1_has_no_complement(tokens):
    class Double(Hardest):
        def keep(self, tokens):
            return super().keep(tokens) * 2.0

    with pytest.raises(RunError, match="'not' of 'hardest': a weight above 1 has no complement"):
        Not(of=Double(keep=0.5)).keep(tokens)


def test_a_combination_of_nothing_is_refused():
    with pytest.raises(ValidationError):
        And(members=[])


def test_soft_is_its_selection_where_it_is_sharp(tokens):
    hard = Hardest(keep=0.3)
    sharp = Soft(of=hard, sharpness=1e6).keep(tokens)
    kept = hard.keep(tokens)
    # The token at the threshold weighs a half.
    assert (sharp > 0.4).equal(kept)
    assert torch.unique(sharp).tolist() == [0.0, 0.5, 1.0]


def test_soft_weighs_by_distance_over_spread(tokens):
    scores = tokens.student_nll()
    threshold = scores[Hardest(keep=0.5).keep(tokens)].min()
    wanted = torch.sigmoid(2.0 * (scores - threshold) / scores.std(correction=0))
    torch.testing.assert_close(Soft(of=Hardest(keep=0.5), sharpness=2.0).keep(tokens), wanted)


def test_soft_needs_scores():
    (said,) = Soft(of=Agreement()).faults(None)
    assert "'agreement' does not keep a share by score" in said
    assert list(Soft(of=Random(keep=0.5)).faults(None)) == []


@pytest.mark.parametrize(
    ("selection", "needed"),
    [
        (Score(keep=0.5, score=CrossEntropy()), False),
        (Score(keep=0.5, score=ForwardKL()), True),
        (Or(members=[Random(keep=0.5), Agreement()]), True),
        (Not(of=Random(keep=0.5)), False),
        (Soft(of=Score(keep=0.5, score=ForwardKL())), True),
    ],
)
def test_needs_teacher(selection, needed):
    assert selection.needs_teacher() is needed


@pytest.mark.parametrize(
    "selection",
    [
        Score(keep=0.4, score=CrossEntropy()),
        Band(score=CrossEntropy(), **{"from": 0.2}),
        Or(members=[Random(keep=0.2), Hardest(keep=0.2)]),
        Not(of=Hardest(keep=0.2)),
        Soft(of=Hardest(keep=0.2)),
    ],
    ids=lambda selection: selection.name,
)
def test_contract(selection):
    check_selection(selection)
