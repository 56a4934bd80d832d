import math

import given
import oracle
import pytest
import torch
from engine import Held
from given import VOCABULARY, row
from kdcore_losses import CrossEntropy, ForwardKL

from kdcore import Split
from kdcore.data.collate import Collate
from kdcore.distributed import alone
from kdcore.objective.readings import MicroBatch
from kdcore.objective.step_tokens import ScoredBatch, StepTokens

STUDENT, TEACHER = given.model(double=True), given.model(double=True, seed=1)
ROWS = given.packed_rows()


def tokens(*groups, teacher=None, gather=alone, step=1, seed=0, first=0):
    """The tokens of these micro-batches of rows, the first of which has that number."""
    counts = [len(rows) for rows in groups]
    firsts = [first + sum(counts[:n]) for n in range(len(counts))]
    ranges = [range(at, at + count) for at, count in zip(firsts, counts, strict=True)]
    return step_of(list(zip(ranges, groups, strict=True)), teacher, gather, step, seed)


def step_of(groups, teacher=None, gather=alone, step=1, seed=0):
    """The tokens of these micro-batches: the places of rows in the step, and the rows."""
    student, parts = given.proved(STUDENT), []
    for places, rows in groups:
        batch = Collate(Split("train", "", []), VOCABULARY, torch.device("cpu"))(rows)
        with torch.no_grad():
            parts.append(ScoredBatch(MicroBatch(batch, places), student.states(batch)))
    return StepTokens(parts, student, teacher, step=step, seed=seed, gather=gather)


def known(rows=ROWS):
    teacher = oracle.model_teacher(TEACHER, VOCABULARY)
    with torch.no_grad():
        return list(oracle.tokens_of(rows, STUDENT, teacher, VOCABULARY))


@pytest.mark.parametrize("size", [1, 3, 8])
def test_tokens_are_flat_and_in_order(size):
    teacher = Held(TEACHER)
    some = tokens(*(ROWS[at : at + size] for at in range(0, 8, size)), teacher=teacher)
    expected = known()
    assert some.row.tolist() == [token.row for token in expected]
    assert some.position.tolist() == [token.position for token in expected]
    assert some.labels.tolist() == [token.label for token in expected]
    kl = ForwardKL(temperature=2.0)
    for found, worth in (
        (some.student_nll(), lambda t: oracle.nll(t.student, t.label)),
        (some.nll(), lambda t: oracle.nll(t.teacher, t.label)),
        (some.nll(teacher), lambda t: oracle.nll(t.teacher, t.label)),
        (some.score(CrossEntropy()), lambda t: oracle.nll(t.student, t.label)),
        (some.score(kl), lambda t: oracle.value(kl, t)),
        (some.score(kl, teacher), lambda t: oracle.value(kl, t)),
    ):
        exact = torch.stack([worth(token) for token in expected])
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)
        assert not found.requires_grad


def test_unused_values_are_not_computed(monkeypatch):
    teacher = Held(TEACHER)
    some = tokens(ROWS, teacher=teacher)
    monkeypatch.setattr(some._student, "head", lambda: pytest.fail("a head nobody asked for"))
    some.top(some.random(), 0.5)
    assert teacher.reads == 0


def test_the_students_likelihoods_are_made_once():
    some = tokens(ROWS)
    assert some.student_nll() is some.student_nll()


def test_scores_are_made_in_chunks(monkeypatch):
    whole = tokens(ROWS, teacher=Held(TEACHER)).score(ForwardKL())
    monkeypatch.setattr("kdcore.objective.step_tokens.chunk_size", lambda vocabulary, device: 5)
    sizes = []

    class Counting(ForwardKL):
        def per_token(self, student, teacher, labels):
            sizes.append(len(student))
            return super().per_token(student, teacher, labels)

    pieces = tokens(ROWS, teacher=Held(TEACHER)).score(Counting())
    torch.testing.assert_close(whole, pieces)
    assert sizes == [5] * 8 + [3]


# Ranking


def kept(scores, share):
    return tokens([row(9)]).top(torch.tensor(scores), share).nonzero().flatten().tolist()


def test_the_highest_are_kept_and_of_equal_ones_the_first():
    assert kept([1.0, 3.0, 2.0, 3.0, 0.0], 0.4) == [1, 3]
    assert kept([1.0, 1.0, 1.0, 1.0, 1.0], 0.4) == [0, 1]
    assert kept([0.0, 2.0, 2.0, 2.0], 0.5) == [1, 2]


def test_what_is_not_a_number_is_never_kept():
    nan, inf = math.nan, math.inf
    assert kept([nan, 1.0, nan, 2.0], 0.5) == [1, 3]
    assert kept([nan, 1.0, nan, 2.0], 1.0) == [1, 3]
    assert kept([nan, -inf, inf, 0.0], 0.75) == [1, 2, 3]
    assert kept([nan, nan], 0.5) == []


@pytest.mark.parametrize(
    ("share", "of", "count"),
    [(0.3, 10, 3), (0.3, 11, 4), (0.55, 100, 55), (0.07, 100, 7), (0.001, 5, 1), (1.0, 7, 7)],
)
def test_the_share_is_rounded_up_but_not_by_rounding(share, of, count):
    assert len(kept([0.0] * of, share)) == count
    assert kept([], share) == []


def test_half_scores_are_ranked_without_loss():
    scores = torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16)
    assert tokens([row(3)]).top(scores, 0.5).tolist() == [False, True]
    scores = torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64)
    assert tokens([row(3)]).top(scores, 0.5).tolist() == [False, True]


def test_ranking_is_over_all_processes():
    """Of another process's [9, 1, 5] before this one's [5, 7], the ceil(0.6 x 5) highest."""
    others = torch.tensor([9.0, 1.0, 5.0])
    some = tokens([row(3)], gather=lambda mine: (torch.cat([others, mine]), 3))
    assert some.top(torch.tensor([5.0, 7.0]), 0.6).tolist() == [False, True]
    assert some.ranked.scores.tolist() == [9, 1, 5, 5, 7]
    assert some.ranked.kept.tolist() == [True, False, True, False, True]


def test_padding_cannot_be_kept():
    """The fault of many: padding has no loss with the reference, so its excess is the highest."""
    some = tokens([row(2, seed=1), row(9, seed=2)])
    assert len(some.labels) == 1 + 8
    everything = some.top(some.student_nll(), 1.0)
    assert everything.tolist() == [True] * 9
    assert some.position[some.row == 0].tolist() == [0]


# Random numbers


def test_random_numbers_hang_on_seed_step_and_place_alone():
    whole = tokens(ROWS).random()
    assert ((whole >= 0) & (whole < 1)).all()
    assert len(set(whole.tolist())) == len(whole)
    pieces = tokens(ROWS[:3], ROWS[3:4], ROWS[4:]).random()
    assert torch.equal(whole, pieces)
    mine = tokens(ROWS[5:], first=5).random()
    assert torch.equal(whole[-len(mine) :], mine)
    assert not torch.equal(whole, tokens(ROWS, step=2).random())
    assert not torch.equal(whole, tokens(ROWS, seed=1).random())


# Readings


def test_a_reading_lets_go():
    teacher = Held(TEACHER)
    some = tokens(ROWS, teacher=teacher)
    reading = some._parts[0].reading
    first = reading.logits_of(teacher)
    assert reading.logits_of(teacher) is first
    reading.forget()
    assert reading.logits_of(teacher) is not first


MIXED = [(some, [ROWS[n] for n in some]) for some in ([7, 2, 4], [0, 6, 1], [], [5, 3])]


def test_tokens_come_in_the_order_of_the_step_whichever_rows_went_together():
    plain, mixed = tokens(ROWS), step_of(MIXED)
    for name in ("labels", "row", "position"):
        assert torch.equal(getattr(mixed, name), getattr(plain, name))
    assert torch.equal(mixed.random(), plain.random())
    torch.testing.assert_close(mixed.student_nll(), plain.student_nll())
    same = torch.ones(len(plain.labels))
    assert torch.equal(mixed.top(same, 0.4), plain.top(same, 0.4))


def test_values_find_back_to_the_micro_batch_that_their_tokens_came_from():
    mixed = step_of(MIXED)
    parts = mixed.by_part(mixed.row)
    assert [sorted(set(part.tolist())) for part in parts] == [[2, 7], [0, 1, 6], [], [5]]
    assert [part.tolist() for part in tokens(ROWS).by_part(torch.arange(len(mixed.labels)))] == [
        list(range(len(mixed.labels)))
    ]
