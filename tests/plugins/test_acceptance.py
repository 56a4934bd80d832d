"""The eval `acceptance`: exact expectations, and a speculative decoder that is counted."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kdcore_acceptance import Acceptance, Accepted, Overlap, expected, kdcore_evals
from pydantic import ValidationError

from kdcore import Sampling, load_teacher
from kdcore.testing import check, tiny_run

pytestmark = pytest.mark.slow

IDS = 4
END = 0


@pytest.fixture(scope="module")
def run():
    with tiny_run() as made:
        load_teacher(made, made.teacher)
        yield made


def test_hook_kdcore_evals():
    assert kdcore_evals() == [Acceptance]


def tables(seed):
    """Teacher's and student's distribution after each prefix, as a tree of drafts needs them."""
    made = {}

    def at(prefix):
        if prefix not in made:
            rng = np.random.default_rng([seed, len(prefix), *prefix])
            made[prefix] = [rng.dirichlet(np.ones(IDS)) for _ in range(2)]
        return made[prefix]

    return at


def decoded(at, length, prefix=()):
    """Tokens looked at, accepted and yielded by one call of the teacher, by every way it may go."""
    if prefix and prefix[-1] == END:
        return np.zeros(3)
    if len(prefix) == length:
        return np.array([0.0, 0.0, 1.0])
    p, q = at(prefix)
    total = np.zeros(3)
    for token in range(IDS):
        drawn, accepts = q[token], min(1, p[token] / q[token])
        total += drawn * accepts * (np.array([1, 1, 1]) + decoded(at, length, (*prefix, token)))
        total += drawn * (1 - accepts) * np.array([1, 0, 1])
    return total


def drafts(length, prefix=()):
    if len(prefix) == length or (prefix and prefix[-1] == END):
        yield prefix
        return
    for token in range(IDS):
        yield from drafts(length, (*prefix, token))


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_mean_over_all_drafts_is_exact(seed, length):
    at, mean = tables(seed), np.zeros(3)
    for draft in drafts(length):
        p, q = np.array([at(draft[:n]) for n in range(len(draft))]).transpose(1, 0, 2)
        own = [(p[n][token], q[n][token]) for n, token in enumerate(draft)]
        accepted = [min(1, a / b) for a, b in own]
        overlap = np.minimum(p, q).sum(-1).tolist()
        chance = math.prod(b for _, b in own)
        mean += chance * np.array(expected(accepted, overlap, draft[-1] == END))
    np.testing.assert_allclose(mean, decoded(at, length), rtol=1e-12)


def distributions(run, ids):
    """Teacher's and student's over the next token after these ids, in float64."""
    with torch.no_grad():
        logits = run.student(input_ids=torch.tensor([ids])).logits[0, -1, : run.vocabulary]
    table = run.teacher.table()[ids[-1], : run.vocabulary]
    return [each.double().softmax(-1) for each in (table, logits)]


def test_it_is_the_exact_expectation_on_the_same_drafts(run):
    one = Acceptance(draft_length=3, contexts=12)
    sums = np.zeros(3)
    for prompt in one.places(run):
        sampling = Sampling(3, ends=frozenset([0]), vocabulary=run.vocabulary)
        (draft,) = run.sample([prompt], sampling=sampling)
        reached, ids = 1.0, list(prompt.ids)
        for token in draft.ids:
            p, q = distributions(run, ids)
            overlap = float(torch.minimum(p, q).sum())
            sums += np.array([reached, reached * overlap, reached * overlap])
            reached *= min(1.0, float(p[token] / q[token]))
            ids.append(token)
        sums[2] += 1 - reached * draft.finished
    found = one.measure(run)
    assert found["acceptance"] == pytest.approx(sums[1] / sums[0], abs=1e-6)
    assert found["tokens_per_call"] == pytest.approx(sums[2] / 12, abs=1e-6)


def decode(run, context, length, rng):
    """A plain speculative decoder: tokens looked at, accepted and yielded by one call."""
    ids = list(context)
    for n in range(length):
        p, q = distributions(run, ids)
        token = int(torch.multinomial(q, 1, generator=rng))
        if float(torch.rand((), generator=rng)) >= float(p[token] / q[token]):
            return n + 1, n, n + 1
        ids.append(token)
        if token == END:
            return n + 1, n + 1, n + 1
    return length, length, length + 1


def test_a_speculative_decoder_accepts_as_much(run):
    one, rng = Acceptance(draft_length=3, contexts=400), torch.Generator().manual_seed(0)
    found = one.measure(run)
    counts = np.array([decode(run, prompt.ids, 3, rng) for prompt in one.places(run)], float)
    tested, accepted, tokens = counts.sum(0)
    rate = accepted / tested
    # Of a ratio of sums, over contexts; twice, as the eval draws drafts of its own.
    error = math.sqrt(2) * np.std(counts[:, 1] - rate * counts[:, 0]) / math.sqrt(400)
    error /= tested / 400
    assert 0.05 < rate < 0.95
    assert abs(rate - found["acceptance"]) < 3 * error
    error = math.sqrt(2) * np.std(counts[:, 2]) / math.sqrt(400)
    assert abs(tokens / 400 - found["tokens_per_call"]) < 3 * error


def test_a_speed_is_reported_where_its_cost_is_given(run):
    options = {"draft_length": 2, "contexts": 4}
    plain, with_cost = Acceptance(**options).measure(run), Acceptance(**options, draft_cost=0.1)
    assert plain.keys() == {"acceptance", "tokens_per_call"}
    found = with_cost.measure(run)
    assert found["speed_up"] == pytest.approx(plain["tokens_per_call"] / 1.2)


def test_the_same_each_time_and_other_places_with_another_seed(run):
    one, other = Acceptance(contexts=6), Acceptance(contexts=6, seed=1)
    assert one.measure(run) == one.measure(run)
    places = [[list(each.ids) for each in some.places(run)] for some in (one, one, other)]
    assert places[0] == places[1] != places[2]


def test_a_student_that_is_the_teacher_is_always_accepted():
    logits, labels = torch.randn(5, 7), torch.arange(5)
    for loss in (Accepted(), Overlap()):
        values = loss.per_token(logits, logits + 3.0, labels)
        torch.testing.assert_close(values, torch.ones(5))
    assert expected([1.0, 1.0], [1.0, 1.0], False) == (2.0, 2.0, 3.0)
    assert expected([1.0, 1.0], [1.0, 1.0], True) == (2.0, 2.0, 2.0)


def test_overlap_is_one_minus_total_variation():
    p, q = torch.randn(5, 7), torch.randn(5, 7)
    tv = (p.softmax(-1) - q.softmax(-1)).abs().sum(-1) / 2
    found = Overlap().per_token(q, p, torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(found, 1 - tv)


def test_the_contract_is_kept():
    check(Acceptance(contexts=4))


def recipe(**teacher):
    given = {"gives_logits": True, "ids_known": None, "knows_all": True} | teacher
    made = SimpleNamespace(name="told", **{k: (lambda v=v: v) for k, v in given.items()})
    return SimpleNamespace(teacher=made, data=SimpleNamespace(block=8))


@pytest.mark.parametrize(
    "teacher", [{"gives_logits": False}, {"ids_known": 20}, {"knows_all": False}]
)
def test_a_teacher_that_tells_a_part_is_refused(teacher):
    (said,) = Acceptance().faults(recipe(**teacher))
    assert said.startswith("the eval \"acceptance\" needs all of p, and the teacher 'told' gives")


def test_drafts_as_long_as_rows_are_refused():
    assert not list(Acceptance(draft_length=7).faults(recipe()))
    (said,) = Acceptance(draft_length=8).faults(recipe())
    assert said == "draft_length = 8 leaves no room for a context in rows of 8 tokens"


@pytest.mark.parametrize("options", [{"draft_length": 0}, {"contexts": 0}, {"draft_cost": -1.0}])
def test_options_outside_their_ranges(options):
    with pytest.raises(ValidationError):
        Acceptance(**options)
